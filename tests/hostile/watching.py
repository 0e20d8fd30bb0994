"""What a deployment spends on hostile input, and how long innocent streams beside it wait."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np

from tests.deployment import ROOT, Up, await_true
from tests.holding import no_collections

MEMORY = 200 << 20  # bytes that no process may hold above what it had before
CPU_S = 5.0  # of all processes together, beyond what the innocent streams cost
P99_S = 0.25  # of innocent entries: posted, stepped, committed, answered
ANSWERS = 60  # of innocent entries, at least, before their waits are judged
ROW = {"samples": [[39.25, 0.43, 22.75, 0.43, 33.75, 1.3]]}
FRAME = (ROOT / "models/zoo/digits-cnn/1/samples/7-02823.png").read_bytes()
_TICKS = os.sysconf("SC_CLK_TCK")
_ZOO = {"frames": "digits-cnn", "samples": "activity-lstm"}


class Innocents:
    """Producers that do nothing wrong: one stream of rows and one of frames, each posting and waiting in turn."""

    def __init__(self, url: str) -> None:
        self.waits_s: list[float] = []
        self.failed: list[str] = []
        self._url, self._ended = url, threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(kind,), daemon=True) for kind in _ZOO]

    def __enter__(self) -> Innocents:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(60)

    @property
    def p99_s(self) -> float:
        return float(np.quantile(self.waits_s, 0.99))

    def _post(self, kind: str) -> None:
        url = f"{self._url}/v1/streams/innocent-{kind}/{kind}?model={_ZOO[kind]}&wait=30"
        with httpx.Client(timeout=60, trust_env=False, verify=False) as http:
            while not self._ended.is_set():
                began = time.monotonic()
                try:
                    if kind == "frames":
                        answer = http.post(url, content=FRAME, headers={"Content-Type": "image/png"})
                    else:
                        answer = http.post(url, json=ROW)
                except httpx.HTTPError as error:
                    self.failed.append(f"{kind}: {type(error).__name__}: {error}")
                    self._ended.wait(0.05)
                    continue
                self.waits_s.append(time.monotonic() - began)
                if answer.status_code != 200:
                    self.failed.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
                self._ended.wait(0.005)


class Bounds:
    """Judges what `up` spends. `calm_p99_s`: of innocent entries while nothing hostile came, on this machine now."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.calm_p99_s = self._calm_p99_s()

    def _calm_p99_s(self) -> float:
        with Innocents(self.up.url) as innocents, no_collections():
            await_true(lambda: len(innocents.waits_s) >= 2 * ANSWERS, "innocent streams are answered")
        assert not innocents.failed, innocents.failed[:3]
        return innocents.p99_s

    @contextmanager
    def __call__(
        self, *, memory: int = MEMORY, cpu_s: float = CPU_S, innocent: bool = True, extra_pids: Mapping[int, str] = {}
    ) -> Iterator[Innocents]:
        """Fails when a process grows by more than `memory` bytes, when a child of `up` ends, when all of them take more
        than `cpu_s`, or when an innocent entry fails or waits too long: above 250 ms, and above three times what this
        machine needs while it is calm. `innocent=False`: none are posted."""
        pids = [*self.up.family(), *extra_pids]
        children = [pid for pid in pids if _parent(pid) == self.up.process.pid]  # theirs may end: a decoder, a rewrite
        before = {pid: _resident(pid) for pid in pids}
        spent_s = {pid: _cpu_s(pid) for pid in pids}
        for pid in pids:
            _forget_peak(pid)
        innocents = Innocents(self.up.url)
        if innocent:
            with innocents, no_collections():
                yield innocents
                await_true(lambda: len(innocents.waits_s) + len(innocents.failed) >= ANSWERS, "innocents are answered")
        else:
            yield innocents
        ended = [pid for pid in children if not _resident(pid)]
        assert not ended, f"processes that ended: {ended}, {self.up.lines[-5:]}"
        alive = {pid: _peak(pid) for pid in pids if _resident(pid)}
        grown = {_name(pid): peak - before[pid] for pid, peak in alive.items() if peak - before[pid] > memory}
        assert not grown, f"bytes above what they had: {grown}"
        own_s = 0.02 * len(innocents.waits_s)  # what an innocent entry may cost all processes together
        cpu = sum(_cpu_s(pid) - spent_s[pid] for pid in alive) - own_s
        assert cpu < cpu_s, f"{cpu:.1f} s of CPU, expected less than {cpu_s:g}"
        if innocent:
            assert not innocents.failed, innocents.failed[:3]
            limit_s = max(P99_S, 3 * self.calm_p99_s)
            if innocents.p99_s >= limit_s:  # the machine may have become busy: what does it need now?
                self.calm_p99_s = self._calm_p99_s()
                limit_s = max(P99_S, 3 * self.calm_p99_s)
            assert innocents.p99_s < limit_s, (
                f"innocent entries: 99 % within {innocents.p99_s:.3f} s, not {limit_s:.3f}"
            )


def _resident(pid: int) -> int:
    return _status(pid, "VmRSS")


def _peak(pid: int) -> int:
    return _status(pid, "VmHWM")


def _forget_peak(pid: int) -> None:
    """proc(5): the highest resident size is counted anew from here on."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    """Bytes; 0 of a process that is gone."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS
    return 0.0


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _name(pid: int) -> str:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
        return f"{pid} {' '.join(words[-6:])[-80:]}"
    return str(pid)
