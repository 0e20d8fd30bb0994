"""What a container engine does for a compose file, out of Linux namespaces: services run by the file's very commands,
environment, users, mounts, networks and health checks, without an engine. Needs root; nothing of it is seen outside.

An image is a folder of changes over this machine's own files (inside.py). Resource limits and log drivers are not done.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.deploy import composed
from tests.deploy.network import Network

INSIDE = Path(__file__).parent / "inside.py"
PYTHON = str(Path(sys._base_executable).resolve())  # type: ignore[attr-defined]
PLAIN_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NO_RIGHTS = ["setpriv", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
HEALTHY_S = 180.0  # on a machine that does much else


@dataclass
class Image:
    """What running a container needs to know of its image."""

    layers: list[Path] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    workdir: str = "/"

    def argv(self, command: Sequence[str] | None) -> list[str]:
        return [*self.entrypoint, *(self.command if command is None else command)]


class BrokerImage(Image):
    """As the entry point of the images of Redis and of Valkey does: a configuration file alone is an argument."""

    def argv(self, command: Sequence[str] | None) -> list[str]:
        assert command is not None
        return ["redis-server", *command] if command[0].endswith(".conf") else list(command)


@dataclass
class Container:
    name: str  # SERVICE-N
    service: str
    process: subprocess.Popen[bytes]
    log: Path
    spec: Mapping[str, Any]
    environment: dict[str, str]
    user: str

    def alive(self) -> bool:
        return self.process.poll() is None

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def run(self, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """A command inside, as its user and with its environment: `docker compose exec`."""
        enter = ["nsenter", "--target", str(self.process.pid), "--mount", "--net", "--uts", "--root", "--wd", "--"]
        return subprocess.run(
            [*enter, *_as_user(self.user), *command],
            env=self.environment, capture_output=True, input=stdin, timeout=120, check=False,
        )  # fmt: skip

    def why_not_healthy(self) -> str:
        """Its health check, once. Empty when it is well."""
        if self.spec["healthcheck"].get("disable"):
            return ""
        kind, *test = self.spec["healthcheck"]["test"]
        done = self.run(*(["sh", "-c", *test] if kind == "CMD-SHELL" else test))
        return "" if done.returncode == 0 else f"status {done.returncode}: {(done.stdout + done.stderr).decode()}"

    def stop(self) -> int:
        """SIGTERM, and its exit status within the service's grace period."""
        self.process.send_signal(signal.SIGTERM)
        grace = self.spec.get("stop_grace_period", "10s")
        assert grace.endswith("s")
        return self.process.wait(float(grace[:-1]))


class Host:
    """The services of one compose model. `project`: the folder of its file."""

    def __init__(self, project: Path, model: Mapping[str, Any], images: Mapping[str, Image]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rcc-"))
        self._project, self._model, self._images = project, model, images
        self._started = 0
        self._containers: list[Container] = []
        self._published: dict[str, str] = {}
        self._network = Network(list(model["networks"]))

    def up(self, **scale: int) -> None:
        """So many containers of each service named, one after the other as the file says what depends on what."""
        waiting = [name for name in self._model["services"] if name in scale]
        while waiting:
            services = self._model["services"]
            ready = [n for n in waiting if not any(needed in waiting for needed in services[n].get("depends_on", {}))]
            started = [self._start(name) for name in ready for _ in range(scale[name])]
            for container in started:
                self._await_healthy(container)
            waiting = [name for name in waiting if name not in ready]

    def url(self, service: str) -> str:
        """Where this machine reaches the one port that the service publishes; any free one stands for the file's."""
        if service not in self._published:
            ((address, _, inner),) = composed.published(self._model["services"][service])
            self._published[service] = f"http://{address}:{self._network.publish(address, service, inner)}"
        return self._published[service]

    def run(self, service: str, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return self._newest(service).run(*command, stdin=stdin)

    def said(self, service: str) -> str:
        """By the newest container of the service."""
        return self._newest(service).said()

    def stop(self, service: str) -> tuple[int, str]:
        """SIGTERM to the newest container of the service: its exit status within the grace period, and all it said."""
        container = self._newest(service)
        status = container.stop()
        self._network.forget(container.process.pid)
        self._containers.remove(container)
        return status, container.said()

    def close(self) -> None:
        for container in self._containers:
            container.process.kill()
            container.process.wait()
        self._network.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest(self, service: str) -> Container:
        return next(one for one in reversed(self._containers) if one.service == service)

    def _start(self, service: str) -> Container:
        self._started += 1
        spec = self._model["services"][service]
        image, name = self._images[service], f"{service}-{self._started}"
        user = spec.get("user", image.user)
        environment = {"PATH": PLAIN_PATH, **image.environment, **spec.get("environment", {}), "HOSTNAME": name}
        process, log = _launch(
            self.folder, name,
            command=[*_as_user(user), *image.argv(spec.get("command"))],
            environment=environment, layers=image.layers, workdir=spec.get("working_dir", image.workdir),
            tmpfs=spec.get("tmpfs", []), mounts=self._mounts(spec, user), read_only=spec.get("read_only", False),
            files={"/etc/resolv.conf": self._network.resolver(spec["networks"]), "/etc/hosts": "127.0.0.1 localhost\n"},
            attach=lambda pid: self._network.attach(pid, service, spec["networks"]),
        )  # fmt: skip
        container = Container(name, service, process, log, spec, environment, user)
        self._containers.append(container)
        return container

    def _await_healthy(self, container: Container) -> None:
        deadline = time.monotonic() + HEALTHY_S
        while why := container.why_not_healthy():
            assert container.alive(), f"{container.name} ended with {container.process.returncode}:\n{container.said()}"
            assert time.monotonic() < deadline, f"{container.name}: {why}\n{container.said()}"
            time.sleep(0.1)

    def _mounts(self, spec: Mapping[str, Any], user: str) -> list[tuple[str, str, bool]]:
        found = []
        for mount in composed.mounts(spec):
            source = self.folder / "volumes" / mount.source if mount.is_volume else self._project / mount.source
            if mount.is_volume and not source.exists():  # a new one belongs to the image's user
                source.mkdir(parents=True)
                os.chown(source, *map(int, user.split(":")))
            assert source.exists(), f"{source} is missing: {spec['image']} mounts it"
            found.append((str(source), mount.target, mount.read_only))
        return found


def run_once(folder: Path, name: str, command: Sequence[str], environment: Mapping[str, str], **more: Any) -> str:
    """A command in a container that is gone afterwards; what it said. With `upper` its changes stay, as RUN's do."""
    process, log = _launch(folder, name, command=list(command), environment=dict(environment), **more)
    status = process.wait(300)
    said = log.read_text(encoding="utf-8", errors="replace")
    assert status == 0, f"{command} ended with {status}:\n{said}"
    return said


def _launch(
    folder: Path,
    name: str,
    *,
    command: list[str],
    environment: dict[str, str],
    layers: Sequence[Path],
    workdir: str,
    tmpfs: Sequence[str] = (),
    mounts: Sequence[tuple[str, str, bool]] = (),
    files: Mapping[str, str] | None = None,
    read_only: bool = False,
    upper: Path | None = None,
    attach: Any = None,
) -> tuple[subprocess.Popen[bytes], Path]:
    """`upper`: where changes of the root go; None: nowhere. `attach`: called with the pid, whose network is its own."""
    place = folder / name
    place.mkdir(exist_ok=True)
    log = folder / f"{name}.log"
    namespaces = ["--mount", "--uts", "--propagation", "private"] + (["--net"] if attach else [])
    spec = {
        "place": str(place), "upper": upper and str(upper), "layers": list(map(str, layers)),
        "files": dict(files or {}), "tmpfs": list(tmpfs), "mounts": list(mounts), "read_only": read_only,
        "hostname": name if attach else "", "workdir": workdir, "command": command, "environment": environment,
    }  # fmt: skip
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["unshare", *namespaces, PYTHON, "-I", "-S", str(INSIDE)],
            stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    if attach:
        _await_own_network(process.pid)
        attach(process.pid)
    stdin: IO[bytes] | None = process.stdin
    assert stdin is not None
    stdin.write(json.dumps(spec).encode() + b"\n")
    stdin.close()
    return process, log


def _await_own_network(pid: int) -> None:
    """Until unshare has done its work."""
    ours, deadline = Path("/proc/self/ns/net").readlink(), time.monotonic() + 10
    while Path(f"/proc/{pid}/ns/net").readlink() == ours:
        assert time.monotonic() < deadline, f"process {pid} has no network of its own"
        time.sleep(0.002)


def _as_user(user: str) -> list[str]:
    uid, gid = user.split(":")
    return [*NO_RIGHTS, "--reuid", uid, "--regid", gid, "--"]
