"""Child processes that do not outlive their parent.

Linux sends a process a signal of its choice when its parent dies, even by SIGKILL (prctl PR_SET_PDEATHSIG, see
prctl(2); it survives exec). `tied` wraps a command in this file, which asks for that signal and then becomes the
command. Elsewhere the command runs unwrapped. This file imports the standard library only: it runs on its own.

    python service/processes.py PARENT_PID SIGNAL COMMAND…       (PARENT_PID 0: whoever the parent is)
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

OPEN_FILES = 65_536  # that an api process asks for, where the system allows as many
_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def allow_many_files() -> int:
    """Each subscriber is an open file, and many systems allow a process 1,024 unless it asks for more. Returns how many
    this process may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_FILES if allowed == resource.RLIM_INFINITY else allowed


def calm_collector() -> None:
    """Makes garbage collection rare: what was built at start is never looked at again, new objects are by the 100,000.

    A worker's entries are freed by reference counts; collections that walk over them cost a sixth of its time
    (bench.drain: 21 µs an entry with Python's defaults, 18 µs so).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def stop_signals() -> list[signal.Signals]:
    """What asks a process to stop. A hang-up does not where it was ignored from the start, as under nohup."""
    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hang_up]


def tied(command: Sequence[str], death_signal: signal.Signals) -> list[str]:
    """`command`, so that it gets `death_signal` when the THREAD that starts it ends: start it from the main thread."""
    if sys.platform != "linux":
        return list(command)
    # -I -S: no site-packages, no environment: the wrapper costs some 15 ms
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), *command]


def stop(process: subprocess.Popen[bytes], grace_s: float) -> bool:
    """SIGTERM, then SIGKILL after `grace_s`. True when the process ended by itself in time."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def tie_to(parent_pid: int, death_signal: int) -> None:
    """Asks for `death_signal` at the parent's end; ends this process when that parent is already gone."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent_pid not in (0, os.getppid()):
        sys.exit(0)


if __name__ == "__main__":
    tie_to(int(sys.argv[1]), int(sys.argv[2]))
    try:
        os.execvp(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"{sys.argv[3]}: {error.strerror}")
