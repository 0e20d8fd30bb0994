"""What an api process measures of the deployment, about once a second: shards, their lag, live workers, the broker."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from service.api.backlog import Backlog
from service.errors import RollcastError
from service.metrics import ApiMetrics
from service.ports import Predictions, ShardStatus, WorkerInfo

POLL_S: Final = 1.0
BUSY_S: Final = 3.0  # the broker has not answered for so long: a script may hold it
FRESH_S: Final = 0.1  # a refusal is not given on older news than this
log = logging.getLogger("rollcast.api")


class Monitor:
    """Written by its own task, `run`, and by `serves` when its news is stale."""

    def __init__(self, predictions: Predictions, metrics: ApiMetrics, backlog: Backlog) -> None:
        self.workers: Sequence[WorkerInfo] = ()
        self.shards: Sequence[ShardStatus] = ()
        self.away: str | None = "the broker has not answered yet"
        self._predictions = predictions
        self._metrics = metrics
        self._backlog = backlog
        self._workers_at = float("-inf")
        self._lost_at: float | None = None

    async def run(self) -> None:
        while True:
            try:
                await self.refresh()
                self._lost_at = None
            except RollcastError as error:
                self._lose(error.detail)
                await self._end_script()
            except Exception as error:
                log.exception("measuring the shards failed")
                self._lose(f"{type(error).__name__}: {error}")
            await asyncio.sleep(POLL_S)

    async def refresh(self) -> None:
        await self._refresh_workers()
        await self._refresh_broker()
        was, self.shards = {one.shard: one.fault for one in self.shards}, await self._predictions.shard_status()
        for one in self.shards:
            if one.fault and one.fault != was.get(one.shard):
                log.error("no worker takes this shard", extra={"shard": one.shard, "detail": one.fault})
        self.away = None
        self._metrics.broker_up.set(1)
        self._metrics.streams_known.set(self._backlog.census.known)
        self._metrics.streams_limit.set(self._backlog.census.most)
        for status in self.shards:
            self._metrics.lag_entries.labels(status.shard).set(status.lag_entries)
            self._metrics.lag_seconds.labels(status.shard).set(status.lag_s)
            self._metrics.lag_bytes.labels(status.shard).set(self._backlog.waiting_bytes(status.shard))
            self._metrics.shard_owned.labels(status.shard).set(status.owned)

    async def serves(self, model: str) -> bool:
        """Whether a live worker has the model. Raises BrokerAway."""
        if self._lists(model):
            return True
        if asyncio.get_running_loop().time() - self._workers_at > FRESH_S:
            await self._refresh_workers()
        return self._lists(model)

    def reasons(self, models: Sequence[str]) -> list[str]:
        """Why the deployment cannot answer now; empty when it can."""
        if self.away is not None:
            return [f"broker: {self.away}"]
        reasons = [f"no worker serves model {model}" for model in models if not self._lists(model)]
        reasons += [f"{worker.process or worker.id}: {worker.trouble}" for worker in self.workers if worker.trouble]
        reasons += [f"shard {one.shard}: {one.fault}: `rollcast doctor --repair`" for one in self.shards if one.fault]
        free = [str(status.shard) for status in self.shards if not status.owned]
        if free:
            reasons.append(f"{len(free)} of {len(self.shards)} shards have no owner: {', '.join(free[:10])}")
        return reasons

    async def _refresh_workers(self) -> None:
        self.workers = await self._predictions.workers()
        self._workers_at = asyncio.get_running_loop().time()
        self._metrics.workers_live.set(len(self.workers))

    async def _refresh_broker(self) -> None:
        metrics, began = self._metrics, time.monotonic()
        status = await self._predictions.broker_status()
        metrics.broker_seconds.observe(time.monotonic() - began)
        metrics.broker_memory_bytes.set(status.memory_bytes)
        metrics.broker_memory_limit_bytes.set(status.memory_limit)
        metrics.broker_system_memory_bytes.set(status.system_memory)
        metrics.broker_noeviction.set(status.noeviction)
        metrics.broker_evicted.set(status.evicted)
        metrics.broker_aof_enabled.set(status.aof_enabled)
        metrics.broker_disk_ok.set(status.disk_ok)
        metrics.broker_clients.set(status.clients)
        metrics.broker_commands.set(status.commands)

    async def _end_script(self) -> None:
        """Of all who may write into the broker some may run scripts, and one that does not end stops everybody."""
        now = asyncio.get_running_loop().time()
        if self._lost_at is None:
            self._lost_at = now
        if now - self._lost_at < BUSY_S:
            return
        with suppress(RollcastError):  # away, not busy
            said = await self._predictions.end_script()
            if said == "OK":
                log.warning("a script held the broker: ended it")
            elif said is not None:
                log.error("a script holds the broker and cannot be ended: restart the broker", extra={"detail": said})

    def _lose(self, why: str) -> None:
        self.away = why
        self._metrics.broker_up.set(0)

    def _lists(self, model: str) -> bool:
        return any(model in worker.models for worker in self.workers)
