"""The hot loop: read, decode, take, step, roll, commit. `Worker` in loop.py is where to begin reading."""

from service.worker.loop import Worker

__all__ = ["Worker"]
