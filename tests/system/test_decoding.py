"""Pictures that are not provably small are decoded in processes with limits that hold; streams take turns there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import cv2
import numpy as np
import pytest

import service.unpacking
import service.worker.decoding
from service.contracts import Entry, FrameInput, Limits
from service.decode import decode_frame
from service.errors import BadImage, EntryError
from service.unpacking import DecoderDied, DecoderProcess
from service.worker.decoding import SPARE_MEMORY, Decoders, Lane, Unpack
from service.worker.shard import Item
from tests.deployment import ROOT, await_true, environment, runs
from tests.pictures import png, scans

RGB = FrameInput(height=24, width=32, channels=3, colour="rgb")
GRAY = FrameInput(height=8, width=8, channels=1, colour="gray")
LIMITS = Limits(decode_s=1.0)
LARGE = png(2000, 2000, colour=2)  # 12 MB of pixels


@pytest.fixture
def process() -> Iterator[DecoderProcess]:
    one = DecoderProcess()
    yield one
    one.close()


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    some = Decoders(2, LIMITS)
    yield some
    some.shutdown()


def decode(process: DecoderProcess, data: bytes, memory_bytes: int = 400 << 20, limit_s: float = 10.0) -> np.ndarray:
    return process.decode(data, RGB, max_pixels=1 << 28, limit_s=limit_s, memory_bytes=memory_bytes)


def scene(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height)))


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_a_process_gives_the_same_pixels(process: DecoderProcess, extension: str) -> None:
    for size in ((1, 1), (24, 32), (480, 640), (1500, 2000)):
        data = cv2.imencode(extension, scene(*size))[1].tobytes()
        assert np.array_equal(decode(process, data), decode_frame(data, RGB, max_pixels=1 << 28))


def test_what_it_refuses_it_refuses_in_the_same_words(process: DecoderProcess) -> None:
    bomb = png(2000, 2000, size=100_000_000)
    for data in (b"x", LARGE[:-100], bomb):
        with pytest.raises(EntryError) as here:
            decode_frame(data, RGB, max_pixels=1 << 28)
        with pytest.raises(type(here.value)) as there:
            decode(process, data)
        assert here.value.detail in there.value.detail
    assert decode(process, LARGE).max() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_terminal_sends_to_all_at_once_is_the_workers_to_handle(
    process: DecoderProcess, number: signal.Signals
) -> None:
    os.kill(process.pid, number)
    assert decode(process, LARGE).max() == 0


def test_a_picture_that_takes_more_memory_is_refused_and_the_bound_named(process: DecoderProcess) -> None:
    with pytest.raises(BadImage, match="it may take 8,000,000 bytes of memory"):
        decode(process, LARGE, memory_bytes=8_000_000)
    assert decode(process, LARGE).max() == 0


def test_the_system_ends_one_that_takes_more_time(process: DecoderProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.unpacking, "WALL", 10_000)
    endless = scans(4096, 4096, 57, arithmetic=True)  # seconds, however fast the machine
    with pytest.raises(DecoderDied, match=r"more than 0\.01 s of CPU"):
        decode(process, endless, limit_s=0.01)  # the system counts whole seconds
    assert not runs(process.pid)


def heavy(decoders: Decoders, data: bytes = LARGE) -> np.ndarray:
    return decoders.decode(data, RGB)


def test_one_that_is_stuck_is_ended_and_another_started(decoders: Decoders) -> None:
    assert heavy(decoders).max() == 0
    (first,) = decoders.pids
    os.kill(first, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(BadImage, match="decoding was ended: it took longer than 4 s"):
        heavy(decoders)
    assert time.monotonic() - began < 60
    assert not runs(first)
    assert heavy(decoders).max() == 0
    assert decoders.pids not in ([], [first])


def test_one_that_dies_costs_its_picture_only(decoders: Decoders) -> None:
    heavy(decoders)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.2, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(BadImage, match="the decoder ended by SIGKILL"):
        heavy(decoders)
    killer.join()
    assert heavy(decoders).max() == 0


def test_one_that_died_between_two_pictures_costs_none(decoders: Decoders) -> None:
    heavy(decoders)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert heavy(decoders).max() == 0
    assert decoders.pids not in ([], [pid])


def test_a_decoder_that_does_not_start_at_once_costs_no_picture(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, failures = DecoderProcess.__init__, [OSError("no process is left"), DecoderDied("it did not start")]

    def started(self: DecoderProcess) -> None:
        if failures:
            raise failures.pop()
        start(self)

    monkeypatch.setattr(DecoderProcess, "__init__", started)
    monkeypatch.setattr(service.worker.decoding, "START_PAUSES_S", (0.01, 0.01))
    assert heavy(decoders).max() == 0
    assert failures == []


def test_small_pictures_need_no_process(decoders: Decoders) -> None:
    data = cv2.imencode(".jpg", scene(480, 640))[1].tobytes()
    assert decoders.decode(data, RGB).shape == (24, 32, 3)
    assert decoders.pids == []


def test_one_that_may_take_more_than_all_memory_is_refused() -> None:
    decoders = Decoders(1, Limits(decode_memory_bytes=40 << 20))
    try:
        with pytest.raises(BadImage, match=r"may take [\d,]+ bytes of memory: the limit is 41,943,040"):
            heavy(decoders)
        assert decoders.pids == []
    finally:
        decoders.shutdown()


def test_work_is_done_in_threads_and_heavy_pictures_hold_no_small_one(decoders: Decoders) -> None:
    done: list[str] = []

    def work(item: Item, form: FrameInput, decode: Unpack) -> None:
        decode(item.entry.data, form)
        done.append(item.key.name)

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    def item(name: str, data: bytes) -> Item:
        return Item(Entry(b"1-0", 1, 1 << 64, name, "frame", data), Named(name), 0.0)  # type: ignore[arg-type]

    heavy(decoders)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGSTOP)
    hostile = item("hostile", LARGE)
    for _ in range(5):
        decoders.submit(work, hostile, RGB)
    for _ in range(50):
        decoders.submit(work, item("innocent", png(8, 8)), GRAY)
    await_true(lambda: done.count("innocent") == 50, "small pictures are decoded")
    os.kill(pid, signal.SIGCONT)
    await_true(lambda: done.count("hostile") == 5, "the others are, too")


class Gate:
    """Jobs of a lane that end when they are told to."""

    def __init__(self, lane: Lane) -> None:
        self.lane, self.begun, self.open = lane, list[str](), dict[str, threading.Event]()

    def put(self, key: str, name: str, memory: int = 0) -> None:
        event = self.open[name] = threading.Event()

        def run(decode: Unpack) -> None:
            self.begun.append(name)
            assert event.wait(60)

        self.lane.put(key, memory, run)

    def await_begun(self, *names: str) -> None:
        await_true(lambda: set(names) <= set(self.begun), f"{names} begin")

    def close(self) -> None:
        for event in self.open.values():
            event.set()
        self.lane.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    one = Gate(Lane(3, Limits(decode_memory_bytes=1 << 30)))
    yield one
    one.close()


def test_no_stream_has_all_decoders(gate: Gate) -> None:
    for n in range(5):
        gate.put("hostile", f"hostile-{n}")
    gate.await_begun("hostile-0", "hostile-1")
    gate.put("other", "other-0")
    gate.await_begun("other-0")
    assert gate.begun == ["hostile-0", "hostile-1", "other-0"]


def test_streams_take_turns(gate: Gate) -> None:
    for name in ("a", "b", "c"):
        gate.put(name, f"first-{name}")
    gate.await_begun("first-a", "first-b", "first-c")
    for n in range(3):
        gate.put("a", f"a{n}")
    for n in range(2):
        gate.put("b", f"b{n}")
    gate.open["first-a"].set()
    for name in ("a0", "b0", "a1", "b1", "a2"):
        gate.await_begun(name)
        gate.open[name].set()
    assert gate.begun[3:] == ["a0", "b0", "a1", "b1", "a2"]


def test_pictures_begin_in_their_turn_when_their_memory_is_free(gate: Gate) -> None:
    half = (1 << 29) - SPARE_MEMORY
    gate.put("a", "one", half)
    gate.put("b", "two", half)
    gate.await_begun("one", "two")
    gate.put("c", "three", half)
    gate.put("d", "four", 0)
    gate.put("e", "far too large", 1 << 40)  # refused when it is decoded: no reason to wait
    gate.open["one"].set()
    gate.await_begun("three")
    assert "four" not in gate.begun
    gate.open["two"].set()
    gate.await_begun("four", "far too large")


def refused(decoders: Decoders) -> None:
    with pytest.raises(EntryError):
        heavy(decoders)


def test_all_end_at_once_whatever_they_do() -> None:
    decoders = Decoders(2, Limits(decode_s=600.0))
    heavy(decoders)
    (pid,) = decoders.pids
    os.kill(pid, signal.SIGSTOP)
    waiting = threading.Thread(target=refused, args=(decoders,))
    waiting.start()
    began = time.monotonic()
    decoders.shutdown()
    waiting.join(60)
    assert time.monotonic() - began < 30
    assert not runs(pid)


PROGRAM = """
import time
from service.contracts import FrameInput, Limits
from service.worker.decoding import Decoders
from tests.system.test_decoding import LARGE, RGB
decoders = Decoders(2, Limits())
decoders.decode(LARGE, RGB)
print(*decoders.pids, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux ties processes to their parent")
def test_none_outlives_a_worker_that_is_killed() -> None:
    worker = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, env=environment(), cwd=ROOT)
    with worker:
        assert worker.stdout is not None
        (pid,) = map(int, worker.stdout.readline().split())
        assert runs(pid)
        worker.kill()
    await_true(lambda: not runs(pid), "the decoder ends with its worker")
