"""What it costs that pictures are looked at before they are decoded, and where they are: against bare threads.

    python -m bench.decoding [--threads 2] [--pairs 15] [--pictures 200]

Both sides decode the same pictures in as many threads, in turns. What counts is CPU time, of the decoder processes too:
it bounds the throughput of a busy worker, and hardly depends on what else the machine does. `bare` calls OpenCV and
nothing else; `ours` is the worker's own: structure walked, small pictures in threads, the others in processes.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from service.contracts import Entry, FrameInput, Limits
from service.decode import fit_frame
from service.images import check
from service.worker.decoding import Decoders, Unpack, is_small
from service.worker.shard import Item

AHEAD = 32  # pictures that wait, as of a busy worker


def pictures() -> dict[str, tuple[bytes, FrameInput]]:
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (120, 160, 3), np.uint8), (640, 480))
    scene = cv2.add(coarse, rng.integers(0, 5, (480, 640, 3), np.uint8))
    digit = cv2.resize(rng.integers(0, 256, (7, 7), np.uint8), (28, 28))
    rgb, gray = FrameInput(64, 64, 3, "rgb"), FrameInput(28, 28, 1, "gray")
    return {
        "640×480 JPEG": (cv2.imencode(".jpg", scene)[1].tobytes(), rgb),
        "28×28 PNG": (cv2.imencode(".png", digit)[1].tobytes(), gray),
        "640×480 PNG": (cv2.imencode(".png", scene)[1].tobytes(), rgb),
        "1920×1080 JPEG": (cv2.imencode(".jpg", cv2.resize(scene, (1920, 1080)))[1].tobytes(), rgb),
        "3840×2160 JPEG": (cv2.imencode(".jpg", cv2.resize(scene, (3840, 2160)))[1].tobytes(), rgb),
    }


def opencv(data: bytes, form: FrameInput) -> np.ndarray:
    """What a program of a few lines would do."""
    flag = cv2.IMREAD_GRAYSCALE if form.colour == "gray" else cv2.IMREAD_COLOR_RGB
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    assert image is not None
    return fit_frame(np.asarray(image), form)


def cpu_us(submit: Callable[[Callable[[], None]], None], pictures: int, pids: Sequence[int]) -> float:
    """CPU time of one picture. `submit` is given what to call when one is done."""
    room = threading.Semaphore(AHEAD)
    before = _spent_s(pids)
    for _ in range(pictures):
        room.acquire()
        submit(room.release)
    for _ in range(AHEAD):
        room.acquire()
    return (_spent_s(pids) - before) / pictures * 1e6


def _spent_s(pids: Sequence[int]) -> float:
    others = sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)
    return time.process_time() + others / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=200)
    arguments = parser.parse_args()
    limits = Limits()
    bare, ours = ThreadPoolExecutor(arguments.threads), Decoders(arguments.threads, limits)
    for name, (data, form) in pictures().items():
        info, count = check(data, limits.pixels), arguments.pictures * (10 if len(data) < 1000 else 1)
        item = Item(Entry(b"1-0", 1, 1 << 64, "cam", "frame", data), object(), 0.0)  # type: ignore[arg-type]

        def alone(done: Callable[[], None], data: bytes = data, form: FrameInput = form) -> None:
            bare.submit(lambda: (opencv(data, form), done()))

        def whole(done: Callable[[], None], item: Item = item, form: FrameInput = form) -> None:
            def work(item: Item, form: FrameInput, decode: Unpack) -> None:
                decode(item.entry.data, form)
                done()

            ours.submit(work, item, form)

        cpu_us(whole, AHEAD, [])  # processes start
        pids = ours.pids
        sides = [(cpu_us(alone, count, pids), cpu_us(whole, count, pids)) for _ in range(arguments.pairs)]
        before, after = (statistics.median(side) for side in zip(*sides, strict=True))
        where = "thread" if is_small(info) else "process"
        print(f"{name:15} {len(data):9,} B  {where:8} bare {before:9,.1f} µs  ours {after:9,.1f} µs  "
              f"ratio {before / after:.3f}", flush=True)  # fmt: skip
    bare.shutdown()
    ours.shutdown()


if __name__ == "__main__":
    main()
