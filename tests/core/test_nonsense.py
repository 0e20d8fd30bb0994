"""Commands against files and servers that make no sense: one line that says what was expected, and an exit status."""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rollcast import bounds
from service.cli import main
from service.cli.reach import connect
from service.cli.recording import MAX_LINE, read_recording
from service.errors import StartError

HEAD = '{"type":"recording","format":1,"stream":"s"}\n'
Run = Callable[..., tuple[int, str, str]]


def entry(**fields: object) -> str:
    return json.dumps({"id": "17-0", "stream": "s", "kind": "text", "text": "good"} | fields)


def control(said: object) -> str:
    return entry(kind="control", control=said, text=None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `rollcast WORDS` here: exit status, what it printed, and its errors."""

    def one(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rollcast", *words])
        monkeypatch.setenv("COLUMNS", "10000")
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return one


# --- recordings ------------------------------------------------------------------------------------------------------

BAD_LINES = {
    "id of letters": (entry(id="abc"), "expected MS-SEQ"),
    "id of one part": (entry(id="17"), "expected MS-SEQ"),
    "id of 5,000 digits": (entry(id="9" * 5_000 + "-0"), "expected MS-SEQ"),
    "id of 10^300": (entry(id=f"{10**300}-0"), "expected MS-SEQ"),
    "id beyond 64 bits": (entry(id=f"17-{2**64}"), "expected MS-SEQ"),
    "id beyond the year 9999": (entry(id=f"{10**16}-0"), "expected MS-SEQ"),
    "id below 0": (entry(id="-17-0"), "expected MS-SEQ"),
    "id in other digits": (entry(id="١٧-٠"), "expected MS-SEQ"),
    "id that is a number": (entry(id=17), "Expected `str`"),
    "no id": ('{"stream":"s","kind":"text","text":"x"}', "missing required field `id`"),
    "no stream": ('{"id":"1-0","kind":"text","text":"x"}', "missing required field `stream`"),
    "control without action": (control({}), "expected settings, restore, reset or delete"),
    "control of another action": (control({"action": "explode"}), "expected settings, restore, reset or delete"),
    "control whose action is an object": (control({"action": {"a": 1}}), "expected settings, restore, reset or delete"),
    "control that is a number": (control(17), "Expected `object"),
    "settings that are a number": (control({"action": "settings", "settings": 17}), "expected an object"),
    "state that is a number": (control({"action": "restore", "state": 17}), "`state` in base64"),
    "state that is no base64": (control({"action": "restore", "state": "?"}), "`state` in base64"),
    "no state": (control({"action": "restore"}), "`state` in base64"),
    "deep control": (control("HERE").replace('"HERE"', '{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "deep lists": (entry(samples="HERE").replace('"HERE"', "[" * 100_000 + "]" * 100_000), "Expected `float`"),
    "frame without content": (entry(kind="frame"), "kind frame: expected `data`"),
    "samples without content": (entry(kind="samples"), "expected `data` or `samples`"),
    "text without content": (entry(text=None), "kind text: expected `text`"),
    "control without content": (entry(kind="control"), "expected frame, samples or text"),
    "another kind": (entry(kind="dance"), "kind 'dance': expected frame, samples or text"),
    "data that is no base64": (entry(kind="frame", data="?"), "Invalid base64"),
    "seq beyond all": (entry(seq="HERE").replace('"HERE"', "9" * 5_000), "line 3"),
    "no JSON": ("hello", "malformed"),
    "an array": ("[]", "Expected `object`"),
    "not UTF-8": ('{"id": "\udcff"}', "line 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(BAD_LINES))
def test_a_line_that_is_no_entry_is_named_with_what_was_expected(run: Run, tmp_path: Path, name: str) -> None:
    line, expected = BAD_LINES[name]
    file = tmp_path / "bad.ndjson"
    file.write_bytes((HEAD + "\n" + line + "\n").encode(errors="surrogateescape"))
    status, out, err = run("replay", str(file), "--url", "http://127.0.0.1:1")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"{file}, line 3: " in err
    assert expected in err
    assert len(err) < 1_000


@pytest.mark.parametrize("head", ["", "{}", "[" * 100_000, "\udcff", '{"type":"recording","format":2,"stream":"s"}'])
def test_a_file_that_is_no_recording_is_told(run: Run, tmp_path: Path, head: str) -> None:
    file = tmp_path / "bad.ndjson"
    file.write_bytes(head.encode(errors="surrogateescape"))
    status, _, err = run("replay", str(file), "--url", "http://127.0.0.1:1")
    assert (status, err.count("\n")) == (2, 1)
    assert "recording" in err


def test_a_line_without_end_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        read_bytes = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            buffer[:] = b"x" * len(buffer)
            self.read_bytes += len(buffer)
            return len(buffer)

    endless = Endless()
    with pytest.raises(StartError, match=f"line 1: longer than {MAX_LINE} bytes"):
        next(read_recording(io.BufferedReader(endless), "-"))
    assert endless.read_bytes < 2 * MAX_LINE


@pytest.mark.parametrize("speed", ["nan", "inf"])
def test_a_speed_that_is_no_number_is_refused(run: Run, speed: str) -> None:
    status, _, err = run("replay", "x", "--speed", speed)
    assert (status, "speed" in err) == (2, True)


# --- servers ---------------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Answers every call with the same, and notes it."""

    daemon_threads = True

    def __init__(self, write: Callable[[BaseHTTPRequestHandler], None]) -> None:
        asked = self.asked = []  # type: list[str]

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                super().handle_one_request()
                self.close_connection = True

            def do_GET(self) -> None:
                asked.append(f"{self.command} {self.path}")
                try:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    write(self)
                except OSError:  # the client has had enough
                    return

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(write: Callable[[BaseHTTPRequestHandler], None]) -> Server:
        servers.append(Server(write))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def body(data: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def write(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(data)

    return write


def endless(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.end_headers()
    while True:
        to.wfile.write(b"data: x" * 10_000)


NONSENSE = {
    "nothing": body(b""),
    "a page": body(b"<html>hello</html>"),
    "a number": body(b"17"),
    "null": body(b"null"),
    "an empty object": body(b"{}"),
    "an array": body(b"[]"),
    "other types": body(b'{"models": [17], "streams": "x", "dead": {}, "next": 3, "predictions": 1, "gap": 0}'),
    "rows of nothing": body(b'{"models": [{}], "streams": [{}], "dead": [{}], "next": null, "predictions": [{}]}'),
    "deep": body(b"[" * 100_000),
    "not UTF-8": body(b'{"models": "\xff"}'),
    "compressed": body(b"\x1f\x8b" + bytes(50), Content_Encoding="gzip"),
    "elsewhere": body(b"", 302, Location="/v1/x"),
    "endless": endless,
    "no HTTP": lambda to: to.wfile.write(b"SSH-2.0-OpenSSH\r\n") and None,
    "a problem of nothing": body(b"[]", 500),
    "a deep problem": body(b"[" * 100_000, 500),
    "a problem in colours": body(b'{"title": "\\u001b[2J[bold]x", "detail": 17, "type": [1]}', 404),
    "wait for ever": body(b"{}", 503, Retry_After="9" * 4_000),
}  # fmt: skip
COMMANDS = (
    ("models",), ("streams",), ("dead", "list"), ("dead", "show", "s", "1-0"), ("state", "s"),
    ("watch", "s", "--after", "0", "-n", "1"), ("watch", "s", "-n", "1"), ("record", "s", "-", "-n", "1"),
)  # fmt: skip


@pytest.mark.parametrize("name", list(NONSENSE))
def test_a_server_that_makes_no_sense_is_told_in_one_line(
    run: Run, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(bounds, "MAX_ANSWER", 1 << 20)
    monkeypatch.setattr(bounds, "MAX_LINE", 1 << 20)
    monkeypatch.setitem(connect.__kwdefaults__, "retry_s", 0.5)  # the command's patience with "wait for ever"
    server = serve(NONSENSE[name])
    for command in COMMANDS:
        if name == "wait for ever" and command[0] in ("watch", "record"):
            continue  # a subscription waits for a server that says that it comes back
        if NONSENSE[name] is not endless and command[0] == "watch" and command[2] == "--after":
            continue  # lines that are no events are none: they are waited for
        status, out, err = run(*command, "--url", server.url)
        assert (status, err.count("\n")) == (1, 1), (command, err)
        assert err.startswith("rollcast: "), (command, err)
        assert "\x1b" not in err, command
        assert "Traceback" not in out + err, command
        assert len(err) < 5_000, command


@pytest.mark.parametrize("url", ["http://[", "nonsense", "ftp://h", "http://u:hunter2@[", "http://h:x"])
def test_a_url_that_is_none_is_told(run: Run, url: str) -> None:
    status, _, err = run("models", "--url", url)
    assert status in (1, 2)
    assert (err.count("\n"), "hunter2" in err) == (1, False)


# --- what a replay does ----------------------------------------------------------------------------------------------

ACCEPTED = body(b'{"id": "18-0", "stream": "s", "model": "m", "action": "delete"}')


def test_a_deletion_is_carried_out_only_where_that_is_asked_for(
    run: Run, serve: Callable[..., Server], tmp_path: Path
) -> None:
    file = tmp_path / "r.ndjson"
    file.write_text(HEAD + entry() + "\n" + control({"action": "delete"}) + "\n" + entry(id="18-0") + "\n")
    server = serve(ACCEPTED)
    status, _, err = run("replay", str(file), "--url", server.url)
    assert (status, [one.split()[0] for one in server.asked]) == (0, ["POST", "POST"])
    assert f"{file}, line 3: the deletion is left out (--delete carries it out)" in err
    server.asked.clear()
    assert run("replay", str(file), "--delete", "--url", server.url)[0] == 0
    assert [one.split()[0] for one in server.asked] == ["POST", "DELETE", "POST"]


def test_a_far_id_is_not_waited_for(run: Run, serve: Callable[..., Server], tmp_path: Path) -> None:
    file = tmp_path / "r.ndjson"
    file.write_text(HEAD + "".join(entry(id=f"{ms}-0") + "\n" for ms in (17, 10**13, 5, 10**13 + 1)))
    server = serve(ACCEPTED)
    status, _, err = run("replay", str(file), "--longest-pause", "0.2", "--url", server.url)
    assert (status, len(server.asked)) == (0, 4)
    assert f"{file}, line 3: a pause of 10,000,000,000 s is cut to 0.2 s (--longest-pause)" in err
    assert "line 5" not in err
