"""Several worker processes on one broker, a producer, and what a bystander sees of leases and heads."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from service.codec import parse_head
from service.keys import workers_key
from tests.system import killed
from tests.system.test_kill import Run
from tests.worlds import wait_until

LEASE_S = 0.3


class Crew(Run):
    """A run whose workers live at the same time, each under a name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.workers: dict[str, Any] = {}
        self.hired = 0

    def hire(self, *names: str, fault: str = "", lease_s: float = LEASE_S) -> None:
        for name in names:
            self.hired += 1
            folder = self.folder / str(self.hired)  # each writes its own package: another may be reading
            folder.mkdir()
            self.workers[name] = self.context.Process(
                target=killed.work, args=(self.url, self.prefix, self.shards, str(folder), name, fault, True, lease_s)
            )
            self.workers[name].start()

    def close(self) -> None:
        for process in self.workers.values():
            process.kill()
            process.join(60)
        super().close()

    # --- looking on ----------------------------------------------------------------------------------------------

    def owners(self) -> list[str]:
        """Of each shard; empty where there is none."""
        found: Any = [self.client.get(keys.owner) for keys in self.keys]
        return [value.split()[0].decode() if value else "" for value in found]

    def dump(self) -> dict[bytes, bytes]:
        """Every key of the shards."""
        keys: Any = self.client.scan_iter(f"{self.prefix}:{{*", count=1000)
        return {key: self.client.dump(key) for key in keys}  # type: ignore[misc]

    def shared(self, **shares: int) -> bool:
        return Counter(self.owners()) == Counter(shares)

    def await_shared(self, limit_s: float = 60.0, **shares: int) -> float:
        """Seconds until each of these has its number of shards, and nobody else any."""
        began = time.monotonic()
        wait_until(lambda: self.shared(**shares), limit_s, f"{shares}, not {Counter(self.owners())}")
        return time.monotonic() - began

    def live(self) -> set[str]:
        names: Any = self.client.zrange(workers_key(self.prefix), 0, -1)
        return {name.decode() for name in names}

    # --- working -------------------------------------------------------------------------------------------------

    def feed(self, entries: int) -> None:
        """Posts so many, not faster than they are answered."""
        target = self.posted_entries() + entries

        def all_posted() -> bool:
            for _ in range(20):
                if self.logged() < 400 and self.posted_entries() < target:
                    self.post()
            return self.posted_entries() >= target

        wait_until(all_posted, 60, "posted")

    def await_answers(self, limit_s: float = 60.0) -> None:
        wait_until(lambda: self.answered() >= self.posted_entries(), limit_s, "every entry is answered")

    def dismiss(self) -> None:
        """Everybody ends in order."""
        for process in self.workers.values():
            if process.is_alive():
                process.terminate()
        for process in self.workers.values():
            process.join(60)
            assert process.exitcode is not None

    def numbers(self) -> list[int]:
        return [parse_head(head).n if head else 0 for head in self.heads()]
