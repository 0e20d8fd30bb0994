"""A home that somebody prepared is refused, and nothing that its links lead to is touched."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from service import homes
from service.app import run_up
from service.embedded import EmbeddedBroker, url_on
from service.errors import HomeRefused
from service.settings import Settings

OTHER = 4242  # a user that nobody here is
FILES = ("lock", "broker.conf", "broker.log", "broker.pid", "rollcast.log", "appendonly.aof")


@pytest.fixture
def root() -> None:
    """Only root can give files to another user."""
    if os.geteuid() != 0:
        (pytest.fail if os.environ.get("REQUIRE_ALL") == "1" else pytest.skip)("needs root")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    return victim


def link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def folder(path: Path, _: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("prepare", [link, hard_link, pipe, folder])
def test_what_was_put_in_place_of_a_file_is_named_and_not_touched(
    home: Path, victim: Path, name: str, prepare: Callable[[Path, Path], None]
) -> None:
    prepare(home / name, victim)
    with pytest.raises(HomeRefused, match=name):
        EmbeddedBroker(home).start()
    assert victim.read_text() == "precious"
    assert sorted(home.iterdir()) == [home / name]


@pytest.mark.parametrize("name", ["parity", "appendonlydir"])
def test_folders_in_it_are_ours_alone_and_hold_no_links(home: Path, victim: Path, name: str) -> None:
    (home / name).symlink_to(victim.parent)
    with pytest.raises(HomeRefused, match=f"{name}: expected a folder, and no link"):
        homes.check(home)
    (home / name).unlink()
    (home / name).mkdir()
    (home / name).chmod(0o777)
    with pytest.raises(HomeRefused, match=f"{name}: others may write into it"):
        homes.check(home)
    (home / name).chmod(0o700)
    (home / name / "x").symlink_to(victim)
    with pytest.raises(HomeRefused, match=f"{name}/x: a link"):
        homes.check(home)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_a_folder_that_others_may_write_into_is_refused(home: Path, mode: int) -> None:
    home.chmod(mode)
    with pytest.raises(HomeRefused, match=rf"others may write into it \(mode {mode:04o}\).*chmod go-w"):
        EmbeddedBroker(home).start()
    assert list(home.iterdir()) == []
    assert not homes.is_private(home)


@pytest.mark.usefixtures("root")
def test_a_folder_or_a_file_of_another_user_is_refused(home: Path) -> None:
    (home / "broker.log").touch()
    os.chown(home / "broker.log", OTHER, OTHER)
    with pytest.raises(HomeRefused, match=r"broker\.log belongs to user 4242"):
        homes.check(home)
    os.chown(home, OTHER, OTHER)
    with pytest.raises(HomeRefused, match="belongs to user 4242, and this is user 0: expected a folder of one's own"):
        homes.check(home)


@pytest.mark.usefixtures("root")
def test_a_link_of_another_user_on_the_way_is_refused_and_one_s_own_is_fine(home: Path, tmp_path: Path) -> None:
    own, strange, through = tmp_path / "own", tmp_path / "strange", tmp_path / "through"
    for path, target in ((own, tmp_path), (strange, tmp_path), (through, strange / "home")):
        path.symlink_to(target)
    os.chown(strange, OTHER, OTHER, follow_symlinks=False)
    homes.check(own / "home")
    for path in (strange / "home", through, through / ".." / "home"):
        with pytest.raises(HomeRefused, match="is a link of user 4242"):
            homes.check(path)


def test_a_socket_that_leads_elsewhere_is_not_spoken_to(home: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(tmp_path / "s"))
        (home / "broker.sock").symlink_to(tmp_path / "s")
        with pytest.raises(HomeRefused, match=r"broker\.sock: a link into"):
            url_on(home)
        with pytest.raises(HomeRefused, match=r"broker\.sock: a link into"):
            EmbeddedBroker(home).start()
        assert (tmp_path / "s").is_socket()


def test_the_demos_log_is_not_written_through_a_link(home: Path, victim: Path) -> None:
    (home / "rollcast.log").symlink_to(victim)
    with pytest.raises(HomeRefused, match=r"rollcast\.log"):
        run_up(Settings(home=home, port=0, broker=None), demo=True)
    assert victim.read_text() == "precious"


def test_a_home_is_made_for_this_user_and_so_is_what_lies_in_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        broker = EmbeddedBroker(tmp_path / "deep" / "home")
        broker.start()
        broker.stop()
    finally:
        os.umask(before)
    found = [broker.home, *broker.home.rglob("*")]
    assert len(found) >= 5
    for path in found:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_files_of_an_earlier_version_are_closed_to_others(home: Path) -> None:
    (home / "lock").touch(0o644)
    (home / "broker.log").touch(0o666)
    broker = EmbeddedBroker(home)
    broker.start()
    broker.stop()
    assert {stat.S_IMODE((home / name).stat().st_mode) for name in ("lock", "broker.log")} == {0o600}


@pytest.mark.parametrize(("mode", "apart"), [(0o700, True), (0o1777, True), (0o777, False), (0o770, False)])
def test_sockets_are_made_only_where_others_cannot_replace_them(tmp_path: Path, mode: int, apart: bool) -> None:
    tmp_path.chmod(mode)
    assert homes.keeps_apart(tmp_path) is apart
