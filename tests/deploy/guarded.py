"""A broker with the users of deploy/redis, and the processes of rollcast that come to it as these."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.deploy.composed import read_env
from tests.deployment import COMMAND, await_true, environment

SHARDS = 4
ADMIN = "user admin on >admin ~* &* +@all\n"
HARMLESS = {"client|setinfo"}  # redis-py's card: it does not mind to be refused


class Broker:
    """redis.conf and users.acl as they are, on a Unix socket; and an administrator, whom the file has not."""

    def __init__(self, binary: str, project: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rca-"))
        self._passwords = read_env(project / ".env")
        self._socket = self.folder / "s"
        acl = self.folder / "users.acl"
        acl.write_text((project / "deploy/redis/users.acl").read_text() + ADMIN)
        changed = {"port": "0", "unixsocket": str(self._socket), "dir": str(self.folder), "aclfile": str(acl)}
        changed["pidfile"] = str(self.folder / "broker.pid")
        words = [word for name, value in changed.items() for word in (f"--{name}", value)]
        config = project / "deploy/redis/redis.conf"
        self.log = (self.folder / "log").open("wb")
        self._command = [binary, str(config), *words, "--maxmemory", "256mb"]
        self.start()
        self.admin = self.as_user("admin", "admin")

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=self.log, stderr=self.log)
        try:
            await_true(self.answers, "the broker answers")
        except BaseException:
            self.close()
            raise

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()
        try:
            return bool(self.as_user("admin", "admin").ping())
        except redis.ConnectionError:
            return False

    def password(self, user: str) -> str:
        if user == "health":  # it has none, and takes any
            return ""
        return self._passwords[f"REDIS_PASSWORD_{user.upper()}"]

    def url(self, user: str) -> str:
        return f"unix://{user}:{self.password(user)}@{quote(str(self._socket))}"

    def as_user(self, user: str | None, password: str | None = None) -> redis.Redis:
        if user is not None and password is None:
            password = self.password(user)
        never = Retry(NoBackoff(), 0)
        return redis.Redis(
            unix_socket_path=str(self._socket), username=user, password=password, protocol=2, retry=never
        )

    def denied(self) -> list[tuple[str, str, str]]:
        """(user, reason, what) of everything that was denied since the last look."""
        entries: Any = self.admin.execute_command("ACL", "LOG", "128")
        self.admin.execute_command("ACL", "LOG", "RESET")
        found = [dict(zip(map(text, entry[::2]), entry[1::2], strict=True)) for entry in entries]
        words = [(text(one["username"]), text(one["reason"]), text(one["object"])) for one in found]
        return [one for one in words if one[2] not in HARMLESS]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()
        shutil.rmtree(self.folder)


def text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Process:
    """`rollcast api` or `rollcast worker` as its user, whose log lines are read as they come."""

    def __init__(self, command: str, broker: Broker, **more: str) -> None:
        self.lines: list[dict[str, Any]] = []
        settings = {
            "BROKER": broker.url(command), "SHARDS": str(SHARDS), "LEASE_S": "3", "METRICS_PORT": "0", "PORT": "0",
            "LOG_FORMAT": "json", "OUTPUT_HISTORY_S": "4", "STATE_TTL_S": "5", "DEAD_KEPT": "2", **more,
        }  # fmt: skip
        variables = {f"ROLLCAST_{name}": value for name, value in settings.items()}
        self.process = subprocess.Popen(
            [*COMMAND, command], env=environment() | variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except ValueError:  # a decoder's own words
                self.lines.append({"event": line.decode(errors="replace")})

    def said(self, event: str) -> list[dict[str, Any]]:
        assert self.process.poll() is None, self.lines
        return [line for line in self.lines if line["event"] == event]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        status = self.process.wait(60)
        self._reader.join(60)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return status
