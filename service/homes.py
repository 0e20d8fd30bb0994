"""The folder of `up`, and the files in it: used only where nobody but this user can have put anything.

A folder that somebody prepared, with links in it to files of ours, would have us overwrite these; one that others may
write into could hand us data, a socket or proofs of packages that are theirs. So a home belongs to this user, nobody
else may write into it, what we use in it is this user's own and no link, and nothing in it is opened through a link.
What is written there is for this user only, 0600.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO, Any, Final, Literal, overload

from service.errors import HomeRefused

SOCKET: Final = "broker.sock"
SOCKET_FOLDER: Final = "rollcast-"  # what the name of a folder begins with that was made for a socket
_FILES: Final = ("lock", "broker.conf", "broker.log", "broker.pid", "rollcast.log", "appendonly.aof")
_FOLDERS: Final = ("appendonlydir", "parity")
_LINKS: Final = 40  # on the way to a home, as many as the system follows
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def claim(home: Path) -> None:
    """Makes the folder if it is not there, for this user only. Raises HomeRefused where it is not to be trusted."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HomeRefused(f"home {home}: {error.strerror}; expected a folder this user may write") from None
    check(home)


def check(home: Path) -> None:
    """Raises HomeRefused that names what is wrong: with the folder, with the way to it, or with what lies in it."""
    try:
        _check_way(home, home, _LINKS)
        _check_folder(home, home.stat(), home)
        for name in _FILES:
            _check_file(home / name, home)
        for name in _FOLDERS:
            folder = home / name
            if folder.is_symlink() or folder.exists():
                _check_folder(folder, folder.lstat(), home)
                for file in folder.iterdir():
                    _check_file(file, home)
        _check_socket(home / SOCKET, home)
    except OSError as error:
        raise HomeRefused(f"home {home}: {error.filename}: {error.strerror}") from None


def is_private(home: Path) -> bool:
    """Whether it is there and can be trusted."""
    try:
        check(home)
    except HomeRefused:
        return False
    return True


@overload
def opened(path: Path, mode: Literal["a+", "w"]) -> IO[str]: ...
@overload
def opened(path: Path, mode: Literal["ab", "wb"]) -> IO[bytes]: ...
def opened(path: Path, mode: str) -> IO[Any]:
    """A file in a home, as `open` does, made 0600: no link, and nothing but a regular file of this user. Raises
    HomeRefused and OSError."""
    return open(path, mode, encoding=None if "b" in mode else "utf-8", opener=_open_private)


def keeps_apart(folder: Path) -> bool:
    """Whether what a user makes in this folder stays that user's: nobody else may write there, or it is sticky."""
    try:
        found = folder.stat()
    except OSError:
        return False
    shared = found.st_mode & _OTHERS_WRITE
    return found.st_uid in (0, os.geteuid()) and (not shared or bool(found.st_mode & stat.S_ISVTX))


def _open_private(path: str, flags: int) -> int:
    """Nothing is truncated before it is known to be ours; a pipe is not waited for."""
    try:
        found = os.open(path, (flags & ~os.O_TRUNC) | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise HomeRefused(f"{path}: a link; expected a file of this user") from None
        raise
    try:
        _judge_file(path, os.fstat(found))
        os.fchmod(found, 0o600)
        if flags & os.O_TRUNC:
            os.ftruncate(found, 0)
    except BaseException:
        os.close(found)
        raise
    return found


# --- what is wrong ---------------------------------------------------------------------------------------------------


def _check_way(path: Path, home: Path, links: int) -> None:
    """Links on the way may be of this user, or the system's own (macOS has /tmp as one)."""
    for part in reversed((path, *path.parents)):
        found = part.lstat()
        if stat.S_ISLNK(found.st_mode):
            if found.st_uid not in (0, os.geteuid()):
                raise HomeRefused(
                    f"home {home}: {part} is a link of {_user(found)}; expected one of this user, or none"
                )
            if links == 0:
                raise HomeRefused(f"home {home}: {part}: too many links")
            _check_way(part.parent / part.readlink(), home, links - 1)


def _check_folder(folder: Path, found: os.stat_result, home: Path) -> None:
    where = f"home {home}" if folder == home else f"home {home}: {folder.name}"
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
        raise HomeRefused(f"{where}: expected a folder, and no link to one")
    if found.st_uid != os.geteuid():
        raise HomeRefused(
            f"{where} belongs to {_user(found)}, and this is user {os.geteuid()}: expected a folder of one's own. "
            "Run as that user, or give another folder with --home"
        )
    if found.st_mode & _OTHERS_WRITE:
        raise HomeRefused(
            f"{where}: others may write into it (mode {stat.S_IMODE(found.st_mode):04o}); expected a folder of this "
            f"user alone: chmod go-w {folder}, if you know all that is in it, or give another one with --home"
        )


def _check_file(path: Path, home: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    _judge_file(f"home {home}: {path.relative_to(home)}", found)


def _judge_file(where: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
        raise HomeRefused(
            f"{where}: {kind}; expected a file of this user. Remove it, or give another folder with --home"
        )
    if found.st_uid != os.geteuid():
        raise HomeRefused(f"{where} belongs to {_user(found)}; expected a file of user {os.geteuid()}")
    if found.st_nlink > 1:
        raise HomeRefused(f"{where} has {found.st_nlink} names (hard links); expected a file of this folder alone")


def _check_socket(path: Path, home: Path) -> None:
    """The socket, or our own link to one in a folder that was made for it."""
    if not path.is_symlink() and not path.exists():
        return
    found = path.lstat()
    if found.st_uid != os.geteuid():
        raise HomeRefused(f"home {home}: {SOCKET} belongs to {_user(found)}; expected one of user {os.geteuid()}")
    if not stat.S_ISLNK(found.st_mode):
        if not stat.S_ISSOCK(found.st_mode):
            raise HomeRefused(f"home {home}: {SOCKET}: no socket. Remove it, or give another folder with --home")
        return
    folder = path.readlink().parent
    if not folder.name.startswith(SOCKET_FOLDER):
        raise HomeRefused(f"home {home}: {SOCKET}: a link into {folder}; expected one that `rollcast up` made, or none")
    if folder.is_symlink() or folder.exists():
        there = folder.lstat()
        own = stat.S_ISDIR(there.st_mode) and there.st_uid == os.geteuid() and not there.st_mode & _OTHERS_WRITE
        if not own:
            raise HomeRefused(f"home {home}: {SOCKET} lies in {folder}; expected a folder of user {os.geteuid()} alone")


def _user(found: os.stat_result) -> str:
    return f"user {found.st_uid}"
