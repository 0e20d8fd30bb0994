"""Signs of life: any answer is one, so is a connection that is closed; silence is none."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from service import liveness, supervisor
from service.liveness import Pulse, Questions, pulse_into
from service.supervisor import Child
from tests.worlds import wait_until


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4) as one:
        yield one


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 503 Busy\r\n\r\n", b"no HTTP", b""])
def test_any_answer_and_a_connection_that_is_closed_are_signs_of_life(listener: socket.socket, answer: bytes) -> None:
    asked: list[bytes] = []

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            if answer:
                asked.append(connection.recv(1000))
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    questions = Questions(listener, 0.01)
    wait_until(questions.heard, 60)
    thread.join()
    questions.close()
    host, port = listener.getsockname()
    assert asked == [f"GET /livez HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode()] * bool(answer)


@pytest.mark.parametrize("accepts", [True, False])
def test_who_does_not_answer_is_silent_however_often_it_is_asked(listener: socket.socket, accepts: bool) -> None:
    """More questions come than the listener's queue holds."""
    accepted: list[socket.socket] = []
    questions = Questions(listener, 0.0)
    for _ in range(100):
        assert not questions.heard()
        if accepts and not accepted:
            accepted.append(listener.accept()[0])
    if accepted:
        accepted[0].close()
        wait_until(questions.heard, 60, "the oldest question waits as well as the newest")
    questions.close()


def test_heartbeats_are_heard_and_those_of_an_earlier_life_are_not() -> None:
    pulse = Pulse()
    _, (fd,) = pulse.arguments()
    beat = pulse_into(os.dup(fd))
    pulse.started()
    assert not pulse.heard()
    beat()
    beat()
    assert pulse.heard()
    assert not pulse.heard()
    beat()
    pulse.arguments()
    pulse.started()
    assert not pulse.heard()
    beat()
    pulse.close()


def test_the_time_in_which_nobody_looked_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a supervisor that was stopped together with its children would kill them all when it goes on."""

    class Clock:
        now = 1000.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    child = Child("child", [sys.executable, "-c", "input()"], sign=Pulse(), silence_s=10.0)
    child.start(os.environ, None)
    try:
        clock.now += 3600
        child.look()
        for _ in range(int(liveness.START_S) - 2):
            clock.now += 1.0
            child.look()
        assert child.ended() is None, "it has as long to start"
        clock.now += 2.0
        child.look()
        clock.now += 2.0
        child.look()
        wait_until(lambda: child.ended() is not None, 60, "it is killed")
    finally:
        child.close()
