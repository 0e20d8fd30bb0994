"""The demo on a terminal: a live table. Elsewhere (a log, a pipe): a line every two seconds. At the end a summary."""

from __future__ import annotations

import time
from typing import Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.demo.feeds import SPEED
from service.demo.tally import Tally
from service.urls import safe_url

LINE_EVERY_S: Final = 2.0


class Screen:
    """Drawn from the main thread."""

    def __init__(self, url: str, tally: Tally) -> None:
        self._url, self._tally = safe_url(url), tally
        self._console = Console(highlight=False)
        self._live: Live | None = None
        self._next_line = 0.0

    def open(self) -> None:
        self._console.print(
            f"rollcast runs at [bold]{self._url}[/] (the interface: {self._url}/docs, metrics: {self._url}/metrics)",
            soft_wrap=True,
        )
        self._console.print(
            f"digit streams show another digit every 3 s; sensor streams replay recordings at {SPEED}× real time. "
            "None of it was trained on. Ctrl-C ends it.",
            soft_wrap=True,
        )
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, auto_refresh=False)
            self._live.start()

    def draw(self) -> None:
        now = time.monotonic()
        if self._live is not None:
            if now >= self._next_line:
                self._live.update(self._table(), refresh=True)
                self._next_line = now + 0.1
        elif now >= self._next_line and (rows := self._tally.rows()):
            shown = "  ".join(f"{row.stream} {row.label} {row.score:.2f}" for row in rows)
            print(f"{shown}  |  {self._accuracies()}", flush=True)
            self._next_line = now + LINE_EVERY_S

    def close(self) -> int:
        """Prints the summary; 1 when an accuracy is below what is expected, or an answer is missing."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        tally, wrong = self._tally, 0
        for model, least in tally.least_accuracy.items():
            low = tally.accuracy(model) < least
            wrong += low
            self._say(
                f"{model}: accuracy {tally.accuracy(model):.3f} over {tally.answered[model]} predictions "
                f"(expected at least {least}): {'TOO LOW' if low else 'ok'}"
            )
        if tally.latencies_s:
            ordered = sorted(tally.latencies_s)
            half, most = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
            self._say(f"from entry to subscriber: half within {half * 1000:.1f} ms, 99 % within {most * 1000:.1f} ms")
        self._say(f"posted {tally.posted}, without an answer {tally.unanswered}, asked for again {tally.troubles}")
        for reason in tally.refused:
            self._say(f"not predicted: {reason}")
        return 1 if wrong or tally.unanswered or tally.refused else 0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def _accuracies(self) -> str:
        return "  ".join(
            f"{model} {self._tally.accuracy(model):.3f} ({self._tally.answered[model]})"
            for model in self._tally.least_accuracy
        )

    def _table(self) -> Group:
        table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)  # fits 80 columns
        for name in ("stream", "model", "shown", "label", "score", "rolling", "score", "steps", "ms"):
            table.add_column(name, justify="right" if name in ("score", "steps", "ms") else "left", no_wrap=True)
        for row in self._tally.rows():
            style = "" if row.label == row.known else "red"
            table.add_row(
                row.stream, row.model, row.known, Text(row.label, style), f"{row.score:.2f}",
                row.rolling_label, f"{row.rolling_score:.2f}", str(row.step), f"{row.latency_s * 1000:.0f}",
            )  # fmt: skip
        return Group(table, Text(f"accuracy so far: {self._accuracies()}"))
