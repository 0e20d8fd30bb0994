"""`rollcast post`: files, folders and pipes to a stream."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from rollcast import Accepted, Client, Prediction, Problem, ServerAway
from rollcast.client import DEFAULT_URL
from rollcast.errors import BadAnswer
from service.cli.contents import Block, Content, Garbled, Kind, Source, sources
from service.cli.going_on import FILES_S, Numbers, Waiting, look, reached, settled
from service.cli.reach import AsJson, Stream, Url, connect
from service.cli.shown import line, printable
from service.cli.times import Times, read_time
from service.films import by_numbers
from service.tables import spacing

WAIT_S: Final = 10.0
LEFT_OUT: Final = (  # of a pipe, whose next entry may be better
    "bad-image", "too-large", "unsupported-media", "wrong-shape", "non-finite", "refused", "dropped", "wait-timeout",
)  # fmt: skip
NOT_LOGGED: Final = (400, 404, 413, 415, 422, 429)  # statuses after which the entry's number is free
SHOWN: Final = 5  # refusals, one by one
SAME_RATE: Final = 0.01  # by which two rates may differ and be called the same


def add_to(app: typer.Typer) -> None:
    app.command(rich_help_panel="Use")(post)


def post(
    stream: Stream,
    files: Annotated[
        list[str],
        typer.Argument(
            help="Images (JPEG, PNG, WebP), films, CSV files, or texts, a line each; folders of them; - for a pipe."
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", help="The stream's model; needed if several fit.")] = None,
    rate: Annotated[
        float | None,
        typer.Option("--rate", help="Images, rows or texts a second; default: as fast as it goes.", min=0.001),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", help="Rows of a CSV file in one entry.", min=1, max=4096)] = 1,
    kind: Annotated[
        Kind | None, typer.Option("--kind", help="What the input is; default: by its name and its first bytes.")
    ] = None,
    hz: Annotated[
        float | None,
        typer.Option("--hz", help="Rows or frames a second of a recording; default: the model's.", min=0.001, max=1e6),
    ] = None,
    start_time: Annotated[
        str | None,
        typer.Option("--start-time", help="When a recording begins: s since 1970, or 2025-11-23T01:06:40Z."),
    ] = None,
    time_column: Annotated[
        str | None, typer.Option("--time-column", help="The column of a CSV that says when each row was.")
    ] = None,
    start: Annotated[bool, typer.Option("--start", help="The stream's state begins anew before the first.")] = False,
    numbered: Annotated[
        bool | None,
        typer.Option(
            "--numbered/--no-numbered",
            help="Give every entry the stream's next seq: nothing is ever stepped twice. Default: those of a pipe.",
        ),
    ] = None,
    retry_s: Annotated[
        float | None,
        typer.Option(
            "--retry-s", help="Seconds to wait for a server that is away; default: 60, of a pipe for ever.", min=0
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for each prediction and print it.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Post images, films, rows or texts to a stream, in the order given; a folder's files by their numbers.

    **rollcast post door-7 seven.png eight.png --model digits-cnn --wait**

    **rollcast post belt-1 recording.csv --model activity-lstm --rate 4**

    **ffmpeg -i rtsp://… -f image2pipe -c:v mjpeg - | rollcast post cam-1 -** (every image as it comes)

    **journalctl -f | rollcast post log-1 - --kind text** (every line as it comes)

    A recording has its own times, however fast it is posted: its last row or frame is of when it is posted, unless
    --start-time or --time-column says otherwise. What comes through a pipe is of when it comes.
    The columns of a CSV with a heading find their places by name.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def tell(said: str) -> None:
        console.print(f"rollcast: {printable(said)}", markup=False)

    given = sources(files, rows, kind, time_column, tell)
    if (said := order_said(files)) is not None:
        tell(said)
    begin = _start_time(start_time)
    if begin is not None and time_column is not None:
        raise typer.BadParameter("--start-time and --time-column: one of them says when the rows were")
    live = any(source.live for source in given)
    patience_s = (math.inf if live else FILES_S) if retry_s is None else retry_s
    waiting = Waiting(tell)
    with connect(url, retry_s=patience_s, waiting=waiting) as client:
        known = reached(client, 0.0 if retry_s is None and not live else patience_s, waiting)
        poster = Poster(client, stream, live if numbered is None else numbered, numbered is True, patience_s, tell)
        clock = Clock(client, stream, known, model, hz)
        clock.begin(given, begin, rate)
        begun, posted = time.monotonic(), 0
        for source in given:
            if (said := clock.said_of(source)) is not None:
                tell(said)
            for content in source.contents(clock.hz(source)):
                if isinstance(content, Garbled):
                    poster.leave_out(content.said)
                    continue
                if rate is not None:
                    time.sleep(max(0.0, begun + posted / rate - time.monotonic()))
                more = {"model": model, "start": start and not poster.taken, "wait_s": WAIT_S if wait else None}
                answer = poster.post(content, more | clock.times(source, content), goes_on=source.live)
                posted += _steps(content)
                if answer is not None:
                    clock.answered(answer)
                    _print_answer(answer, as_json)
    poster.end()


class Poster:
    """Posts entries one after the other. What a pipe gives that the server refuses is said, and the next one taken."""

    def __init__(
        self, client: Client, stream: str, numbered: bool, asked: bool, patience_s: float, tell: Callable[[str], None]
    ) -> None:
        self._client, self._stream, self._tell, self._patience_s = client, stream, tell, patience_s
        self._numbers = Numbers(client, stream, asked=asked) if numbered else None
        self.taken = self._left_out = 0

    def post(self, content: Content, more: Mapping[str, Any], *, goes_on: bool) -> Accepted | Prediction | None:
        """None where the entry was left out, which only happens where it `goes_on`."""
        seq = self._numbers.take() if self._numbers else None
        begun = time.monotonic()
        try:
            answer = self._send(content, {**more, "seq": seq})
        except Problem as problem:
            if self._numbers and problem.status in NOT_LOGGED:
                self._numbers.give_back()
            if goes_on and problem.unknown and seq is None:
                self._unknown()
            elif goes_on and any(map(problem.is_a, LEFT_OUT)) and (self.taken or not isinstance(content, Block)):
                self.leave_out(f"{problem.title}: {problem.detail}")
            else:
                raise
        except ServerAway as away:
            over = seq is not None or time.monotonic() - begun >= self._patience_s
            if not goes_on or over or isinstance(away, BadAnswer):
                raise
            self._unknown()
        else:
            self.taken += 1
            return answer
        return None

    def end(self) -> None:
        """Exit status 1 where something was left out."""
        if self._left_out:
            self._tell(f"{self._left_out:,} entries without a prediction")
            raise typer.Exit(1)
        if not self.taken:
            self._tell("nothing was posted: there was nothing in it")

    def leave_out(self, why: str) -> None:
        """The first ones are said one by one, of the others every hundredth."""
        self._left_out += 1
        if self._left_out <= SHOWN or self._left_out % 100 == 0:
            self._tell(f"no prediction of an entry ({self._left_out:,}): {why}")

    def _unknown(self) -> None:
        self._tell("an entry may be in the log or not: its answer was lost, and it is not posted again")

    def _send(self, content: Content, more: Mapping[str, Any]) -> Accepted | Prediction:
        if isinstance(content, bytes):
            return self._client.post_frame(self._stream, content, **more)
        if isinstance(content, str):
            return self._client.post_text(self._stream, content, **more)
        return self._client.post_samples(self._stream, content if content.columns else content.rows, **more)


class Clock:
    """Gives the entries of recordings their times: rows and frames lie as far apart as the model's rate says, or as a
    film's own where the model has none. What a CSV's column of times says comes before that, and what is asked for
    (`hz`, `begin`) before both. What has no rate, and one row or picture by itself, is of when it comes."""

    def __init__(
        self, client: Client, stream: str, models: Sequence[Mapping[str, Any]], model: str | None, hz: float | None
    ) -> None:
        self._client, self._stream, self._models, self._hz = client, stream, models, hz
        self._times: Times | None = None
        self._begins = False  # it was asked when the first row was: a column of times is another clock's
        self._rate: float | None = None
        self._model: str | None = None
        self._know(model)

    def begin(self, given: Sequence[Source], begin: float | None, rate: float | None) -> None:
        """`begin`: of the first row or frame; else the last is of when it is posted, of which there are `rate` a second
        (None: now), and none lies before what the stream had."""
        recorded = [source for source in given if not source.live]
        if recorded and self._model is None and (found := look(self._client, self._stream)) is not None:
            self._know(found["model"] or found["settings"].get("model"))
        for source in given:
            source.known = self._features()
        if self._model is None and self._hz is None:
            if begin is not None or any(source.hz for source in recorded):
                raise typer.BadParameter("a new stream: --model says which rate its recordings have (or --hz)")
            return  # the first answer says it
        spans = [(source.steps(hz), 1 / hz) for source in recorded if (hz := self.hz(source)) is not None]
        if begin is not None:
            self._times, self._begins = Times(begin), True
        elif (steps := sum(steps for steps, _ in spans)) > 1 or any(source.hz for source in recorded):
            first_s, last_s = spans[0][1], spans[-1][1]
            lasts_s = sum(steps * interval_s for steps, interval_s in spans) - last_s
            begin = time.time() - max(0.0, lasts_s - ((steps - 1) / rate if rate else 0.0))
            found = settled(self._client, self._stream)
            self._times = Times(begin if found is None else max(begin, _last_time(found) + first_s))

    def hz(self, source: Source) -> float | None:
        """Rows or frames that are posted of each second of a recording; None: it has no rate."""
        return None if source.live else self._hz or self._rate or source.hz

    def said_of(self, source: Source) -> str | None:
        """What is to be said of a film whose frames are not all posted, each once."""
        hz = self.hz(source)
        if source.hz is None or hz is None or abs(hz / source.hz - 1) <= SAME_RATE:
            return None
        whose = "--hz" if self._hz else f"model {self._model}"
        return f"{source.name}: {source.hz:g} frames a second, {whose} {hz:g}: those nearest in time are posted"

    def times(self, source: Source, content: Content) -> dict[str, Any]:
        """`time` and `interval_s` of an entry."""
        if isinstance(content, Block) and content.times is not None and not self._begins:
            first, last = content.times[0], content.times[-1]
            return {"time": last, "interval_s": 1 / self._hz if self._hz else spacing(first, last, len(content.rows))}
        hz = self.hz(source)
        if self._times is None or hz is None or isinstance(content, str):
            return {}
        said = {"time": self._times.after(_steps(content), 1 / hz)}
        return said | ({"interval_s": 1 / hz} if self._hz and isinstance(content, Block) else {})

    def answered(self, answer: Accepted | Prediction) -> None:
        """Of a new stream the first entry is of when it came, what follows it of then on."""
        if self._model is None:
            self._know(answer.model)
            if rate := self._hz or self._rate:
                self._times = Times(int(answer.id.partition("-")[0]) / 1000 + 1 / rate)

    def _features(self) -> list[list[str]]:
        """Of the stream's model; of every model, where it is not known yet."""
        may = [one for one in self._models if self._model in (None, one["name"])]
        return [one["rows"]["features"] for one in may if one.get("rows")]

    def _know(self, model: str | None) -> None:
        spec = next((one.get("rows") or one.get("frames") for one in self._models if one["name"] == model), None)
        self._model, self._rate = model, (spec or {}).get("rate_hz")


def _steps(content: Content) -> int:
    return len(content.rows) if isinstance(content, Block) else 1


def _last_time(found: Mapping[str, Any]) -> float:
    """Of a stream's last step, s; 0 where it is not kept."""
    state, last = found["state"] or {}, found["last"] or {}
    return max(state.get("time") or 0.0, (last.get("time") or 0.0) if last.get("type") == "prediction" else 0.0)


def _start_time(said: str | None) -> float | None:
    try:
        return None if said is None else read_time(said)
    except ValueError as error:
        raise typer.BadParameter(f"--start-time: {error}") from None


def order_said(files: Sequence[str]) -> str | None:
    """What a shell's `*` does to numbers: it is posted as given, but said."""
    counted = sorted(files, key=lambda name: by_numbers(Path(name)))
    if list(files) != sorted(files) or list(files) == counted:
        return None
    first = next(n for n, name in enumerate(files) if name != counted[n])
    return f"posted as given, {files[first]} before {counted[first]}; name the folder to have them by their numbers"


def _print_answer(answer: Accepted | Prediction, as_json: bool) -> None:
    if isinstance(answer, Prediction):
        print(answer.json if as_json else line(answer), flush=True)
    elif as_json:
        print(json.dumps({"id": answer.id, "stream": answer.stream, "model": answer.model}), flush=True)
    else:
        print(f"{answer.id}  {answer.stream}  {answer.model}", flush=True)
