"""Builds everything out of settings, starts it, and stops it in order: one function a command."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import hiredis

from rollcast import Client
from service import VERSION
from service.api import Bounds, DoorLimits, Names, Server, create_app, message_bytes
from service.broker.log import RedisLog
from service.broker.predictions import RedisPredictions
from service.broker.wire import Wire
from service.contracts import Limits
from service.demo import Demo
from service.embedded import EmbeddedBroker, machine_memory, url_on
from service.engine import OnnxEngine
from service.errors import BrokerAway, BrokerFailed, PackageRefused, StartError, StepFailed
from service.faults import fault_from, poison_from
from service.homes import is_private
from service.liveness import Pulse, Questions, pulse_into
from service.logs import catch_libraries, set_up_logs
from service.metrics import WorkerMetrics, create_registry, serve_metrics
from service.packages import Package, load_packages
from service.parity import ParityReport, verify
from service.parts import refused_alone
from service.ports import WorkerInfo
from service.processes import allow_many_files, calm_collector, stop_signals
from service.settings import Settings
from service.supervisor import Child, Interrupts, Supervisor, listen
from service.urls import safe_url
from service.worker import Worker

OTHER_FILES = 128  # that an api process may have open besides its clients' connections
READY_S = 60.0  # how long `up --demo` waits for the api and the workers
ON_LOOPBACK = ("127.0.0.1", "localhost", "0.0.0.0")  # metrics_host by which an api of this machine reaches a worker
TURN_S = 0.05  # how often the supervisor looks after its children
LAST_S = 6.0  # that a worker has to end by itself: less than its supervisor gives it
log = logging.getLogger("rollcast.app")


# --- one process of each kind ------------------------------------------------------------------------------------


def run_api(settings: Settings, fd: int | None) -> None:
    """One api process until SIGTERM, SIGINT or SIGHUP. `fd`: an open socket to listen on, the supervisor's."""
    set_up_logs(settings.log_format, settings.log_level, "api")
    url = broker_url(settings)
    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    reports = served_packages(settings)
    app = create_app(
        RedisPredictions(url, settings.prefix, settings.shards),
        [package.manifest for package, _ in reports.values()],
        create_registry(),
        parity={name: _figures(report) for name, (_, report) in reports.items()},
        defaults=settings.default_models(),
        schemas={name: package.schema for name, (package, _) in reports.items()},
        limits=entry_limits(settings),
        bounds=Bounds(settings.backlog_bytes, settings.backlog_s, settings.max_streams),
        names=Names(settings.host, settings.names("allowed_hosts"), settings.names("allowed_origins")),
        state_ttl_s=settings.state_ttl_s,
    )
    calm_collector()
    server = Server(app, door_limits(settings, allow_many_files()))
    log.info("listening", extra={"url": f"http://{settings.host}:{listener.getsockname()[1]}"})
    for number in stop_signals():  # uvicorn takes the first two over, and raises them once more after it has stopped
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    server.run(sockets=[listener])
    log.info("stopped")


def run_worker(settings: Settings, number: int, name: str | None = None, pulse: int | None = None) -> None:
    """One worker until SIGTERM, SIGINT or SIGHUP: finishes its batch, commits it, gives its shards back.

    A worker that comes back under the same `name` takes its shards at once; else it waits for their leases to end.
    `pulse`: an open pipe for its heartbeats, the supervisor's.
    """
    catch_libraries()
    set_up_logs(settings.log_format, settings.log_level, f"worker {number}")
    url = broker_url(settings)
    registry = create_registry()
    metrics = WorkerMetrics(registry)
    engines, packages = {}, {}
    for model, (package, _) in served_packages(settings).items():
        if (engine := warm_engine(package)) is not None:
            packages[model], engines[model] = package, (engine, package.schema)
    name = name or new_name()
    port = settings.metrics_port + number if settings.metrics_port else 0
    worker: Worker | None = None

    def not_ready() -> list[str]:
        if worker is None or worker.away:
            return ["the broker is away"]
        if worker.trouble:
            return [f"the broker refuses: {worker.trouble}"]
        return [] if worker.owned or worker.idle else ["owns no shard"]

    def not_live() -> list[str]:
        silent_s = 0.0 if worker is None else time.monotonic() - worker.beat_at
        return [] if silent_s <= silence_of_worker_s(settings) else [f"no heartbeat for {silent_s:.0f} s"]

    server = serve_metrics(registry, port, not_live, not_ready, settings.metrics_host)
    worker = Worker(
        RedisLog(
            url,
            worker=name,
            prefix=settings.prefix,
            shards=settings.shards,
            lease_s=settings.lease_s,
            state_ttl_s=settings.state_ttl_s,
            records_kept=settings.records_kept,
            dead_kept=settings.dead_kept,
            dead_bytes=settings.dead_bytes,
            dead_share=settings.dead_share,
            trim_finished=settings.input_history_s == 0,
        ),
        engines,
        metrics,
        lease_s=settings.lease_s,
        defaults=settings.default_models(),
        state_ttl_s=settings.state_ttl_s,
        input_history_s=settings.input_history_s,
        output_history_s=settings.output_history_s,
        settings_ttl_s=settings.settings_ttl_s,
        dead_history_s=settings.dead_history_s,
        batch_entries=settings.batch_entries,
        max_resident_streams=settings.max_resident_streams,
        tokenizers={name: package.tokenizer for name, package in packages.items() if package.tokenizer is not None},
        decode_threads=settings.decode_threads or cpus_of_one(settings.workers),
        limits=entry_limits(settings),
        about=WorkerInfo(
            id=name,
            models={model: package.manifest.version for model, package in packages.items()},
            process=f"worker-{number}",
            metrics=f"http://127.0.0.1:{server.port}/metrics" if settings.metrics_host in ON_LOOPBACK else "",
            host=socket.gethostname(),
            rollcast=VERSION,
        ),
        hung_s=settings.hung_s,
        alive=pulse_into(pulse),
        fault=fault_from(os.environ),
        poison=poison_from(os.environ),
    )
    calm_collector()
    log.info("worker ready", extra={"models": ",".join(sorted(packages)), "metrics_port": server.port})
    stop = stop_on_signals(worker)
    try:
        worker.run(stop)
    finally:
        server.close()
    log.info("stopped")
    if worker.stuck:  # the interpreter would wait for that thread
        os._exit(0 if stop.is_set() else 1)


def silence_of_worker_s(settings: Settings) -> float:
    """Without a heartbeat. A broker that does not answer is waited for, a lease long, before the next one."""
    return settings.hung_s + max(1.0, settings.lease_s)


def cpus_of_one(workers: int) -> int:
    """Threads for the frames of one of so many workers on this machine. The model itself runs on one (engine.py)."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(8, cpus // workers))


def entry_limits(settings: Settings) -> Limits:
    return Limits(
        settings.max_frame_bytes,
        settings.max_entry_bytes,
        settings.max_pixels,
        settings.decode_s,
        settings.decode_memory_bytes,
    )


def door_limits(settings: Settings, files: int) -> DoorLimits:
    """`files`: how many this process may have open."""
    return DoorLimits(
        head_bytes=settings.max_head_bytes,
        head_s=settings.head_s,
        body_s=settings.body_s,
        idle_s=settings.idle_s,
        answer_s=settings.answer_s,
        connections=min(settings.max_connections or files, max(1, files - OTHER_FILES)),
        client_connections=settings.max_client_connections,
        unfinished_bytes=settings.max_unfinished_bytes,
        message_bytes=message_bytes(max(settings.max_frame_bytes, settings.max_entry_bytes)),
    )


def served_packages(settings: Settings) -> dict[str, tuple[Package, ParityReport]]:
    """The packages that hold what their certificate promises; the others are named in the log. Raises StartError."""
    packages, refused = load_packages(settings.models)
    home = settings.home.expanduser().absolute()
    cache = home / "parity" if is_private(home) else None  # proven once on this machine, not at every start
    served = {}
    for name, package in packages.items():
        try:
            served[name] = package, verify(package, cache)
        except PackageRefused as error:
            refused.append(error)
    for fault in refused:
        log.error("model package refused", extra={"check": fault.check, "detail": fault.detail})
    if not served:
        raise StartError(
            f"no model package can be served from {settings.models or 'the shipped zoo'}; see the lines above"
        )
    return served


def warm_engine(package: Package) -> OnnxEngine | None:
    """The package's engine, ready to run; None, which the log explains, where this machine cannot run its batches."""
    try:
        with refused_alone(package.folder):
            engine = OnnxEngine(package)
            engine.warm_up()
            return engine
    except (PackageRefused, StepFailed) as error:
        log.error("model package refused", extra={"check": "run", "detail": error.detail})
        return None


def _figures(report: ParityReport) -> dict[str, object]:
    return {check.name: {"figure": check.figure, "limit": check.limit} for check in report.checks}


def stop_on_signals(worker: Worker) -> threading.Event:
    """An event that SIGTERM, SIGINT and SIGHUP set; LAST_S later the process ends, and says where it was.

    By another thread: a handler runs on the main one only, where a step may never return.
    """
    stop = threading.Event()
    read, write = os.pipe()
    os.set_blocking(write, False)

    def await_signal() -> None:
        os.read(read, 1)
        faulthandler.dump_traceback_later(LAST_S, exit=True)  # waits for no lock of the interpreter
        stop.set()
        worker.wake()

    for number in stop_signals():
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=await_signal, name="signals", daemon=True).start()
    return stop


# --- everything at once ------------------------------------------------------------------------------------------


def run_up(settings: Settings, *, demo: bool = False, seconds: float | None = None) -> int:
    """Broker, api and workers until Ctrl-C, SIGTERM or `seconds` are over. Returns the exit status."""
    set_up_logs(settings.log_format, "warning" if demo else settings.log_level, "up")
    listener = listen(settings.host, settings.port)
    url = f"http://{settings.host}:{listener.getsockname()[1]}"
    output = (
        settings.home.expanduser().absolute() / "rollcast.log" if demo else None
    )  # the demo's table needs the terminal
    broker = None
    if settings.broker is None:
        wanted = settings.broker_memory_bytes
        memory_bytes = machine_memory() // 2 if wanted is None else wanted
        broker = EmbeddedBroker(
            settings.home, settings.broker_binary, appendfsync=settings.appendfsync, memory_bytes=memory_bytes
        )
    else:
        check_answers(settings.broker)

    def environment(broker_url: str | None) -> Mapping[str, str]:
        given = {"ROLLCAST_BROKER": broker_url} if broker_url else {}
        return {**os.environ, **settings.environment(), **given}

    interrupts = Interrupts()
    supervisor = Supervisor(
        broker=broker,
        api=Child(
            "api",
            _command("api", "--fd", str(listener.fileno())),
            pass_fds=[listener.fileno()],
            sign=Questions(listener, settings.hung_s / 8),
            silence_s=settings.hung_s,
        ),
        workers=[_worker_child(n, silence_of_worker_s(settings)) for n in range(settings.workers)],
        environment=environment,
        listener=listener,
        stopping=lambda: interrupts.count > 0,
        output=output,
    )
    with interrupts:
        try:
            supervisor.start()
            log.info("started", extra={"url": url, "broker": safe_url(broker.url if broker else settings.broker or "")})
            if demo:
                return _show_demo(interrupts, url, settings.models, seconds, supervisor)
            _tend(supervisor, interrupts, seconds)
            return 0
        finally:
            log.info("stopping")
            before = interrupts.count
            supervisor.stop(hurry=lambda: interrupts.count > before)


def _tend(supervisor: Supervisor, interrupts: Interrupts, seconds: float | None) -> None:
    end = None if seconds is None else time.monotonic() + seconds
    while interrupts.count == 0 and (end is None or time.monotonic() < end):
        supervisor.tend()
        time.sleep(TURN_S)


def run_demo(url: str, models: Path | None, seconds: float | None) -> int:
    """The demo's producers and its table on an api that runs elsewhere. Returns the exit status."""
    with Interrupts() as interrupts:
        return _show_demo(interrupts, url, models, seconds)


def _show_demo(
    interrupts: Interrupts,
    url: str,
    models: Path | None,
    seconds: float | None,
    supervisor: Supervisor | None = None,
) -> int:
    _await_ready(interrupts, url, supervisor)
    if interrupts.count:
        return 0
    demo = Demo(url, models)
    demo.start()
    end = None if seconds is None else time.monotonic() + seconds
    while interrupts.count == 0 and (end is None or time.monotonic() < end):
        if supervisor is not None:
            supervisor.tend()
        demo.draw()
        time.sleep(TURN_S)
    before = interrupts.count
    status = demo.finish(hurry=lambda: interrupts.count > before)
    return 0 if before else status  # an interrupted demo has proved nothing, either way


def _await_ready(interrupts: Interrupts, url: str, supervisor: Supervisor | None) -> None:
    deadline = time.monotonic() + READY_S
    with Client(url) as client:
        while interrupts.count == 0 and (reasons := client.reasons_not_ready()):
            if time.monotonic() > deadline:
                why = f"{url} is not ready after {READY_S:.0f} s: {'; '.join(reasons)}"
                raise StartError(f"{why}. {supervisor.last_words()}" if supervisor else why)
            if supervisor is not None:
                supervisor.tend()
            time.sleep(TURN_S)


def _worker_child(number: int, silence_s: float) -> Child:
    """One name for all its lives: started again, it takes its shards back without waiting for its own lease. It is
    started again only when it is dead."""
    command = _command("worker", "--number", str(number), "--name", new_name())
    return Child(f"worker {number}", command, sign=Pulse(), silence_s=silence_s)


def new_name() -> str:
    """An id that no other worker has, on whatever host and at whatever time."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def _command(*arguments: str) -> Sequence[str]:
    return [sys.executable, "-m", "service.cli", *arguments]


# --- the broker --------------------------------------------------------------------------------------------------


def broker_url(settings: Settings) -> str:
    """The broker of an api or a worker that runs by itself: --broker, else that of an `up` on this home."""
    if settings.broker is not None:
        with contextlib.suppress(BrokerAway):  # it is waited for
            check_keeps(settings.broker)
        return settings.broker
    return url_on(settings.home)


def check_answers(url: str) -> None:
    """Raises BrokerFailed when no broker answers at `url`, or one that is not to be trusted with states."""
    try:
        check_keeps(url)
    except BrokerAway as error:
        raise BrokerFailed(f"{error}. Start it, correct --broker, or leave --broker out for the embedded one") from None


def check_keeps(url: str) -> None:
    """Raises BrokerFailed when the broker evicts keys as its memory fills: states would vanish. Raises BrokerAway."""
    wire = Wire(url, 3.0)
    try:
        said = wire.call("INFO", "memory")  # managed ones refuse CONFIG GET
    except hiredis.ReplyError as error:
        log.warning("the broker does not tell its maxmemory-policy", extra={"detail": str(error)})
        return
    finally:
        wire.close()
    policy = re.search(rb"^maxmemory_policy:(\S+)", said, re.MULTILINE)
    if policy is not None and policy[1] != b"noeviction":
        raise BrokerFailed(
            f"broker {safe_url(url)} has maxmemory-policy {policy[1].decode()}: as its memory fills it would drop "
            "states and entries without a word; expected noeviction (CONFIG SET maxmemory-policy noeviction)"
        )
