"""What a person sees while waiting: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import Any, Protocol, TextIO, cast

__all__ = ["LineProgress", "Progress", "Silent", "TerminalProgress", "make_progress", "say"]

FIELDS = ("loss", "fvu", "l0")


class Progress(Protocol):
    """Shown by Trainer: ``total`` steps, of which ``done`` are done."""

    def start(self, total: int, done: int) -> None: ...
    def advance(self, done: int, rows_per_second: float, values: dict[str, float]) -> None: ...
    def stop(self) -> None: ...


class _Listening:
    """Standard error. A terminal that is gone, or a pipe that nobody reads, must not end hours of work."""

    def __init__(self) -> None:
        self.file = sys.stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self.file.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self.file.flush()


def say(line: str) -> None:
    """A line on standard error, if anybody listens."""
    listening = _Listening()
    listening.write(line + "\n")
    listening.flush()


def make_progress(wanted: bool | None) -> Progress:
    """``wanted`` None: a bar if standard error is a terminal, plain lines if it is not."""
    if wanted is False:
        return Silent()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()


class Silent:
    def start(self, total: int, done: int) -> None: ...
    def advance(self, done: int, rows_per_second: float, values: dict[str, float]) -> None: ...
    def stop(self) -> None: ...


class LineProgress:
    """One line on standard error, at most every ``every`` seconds. Nothing for work shorter than that."""

    def __init__(self, every: float = 5.0) -> None:
        self.every = every

    def start(self, total: int, done: int) -> None:
        self.total = total
        self.shown = time.monotonic()

    def advance(self, done: int, rows_per_second: float, values: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.shown < self.every and done < self.total:
            return
        if done == self.total and now - self.shown < self.every / 2:
            return
        self.shown = now
        numbers = "  ".join(f"{k} {values[k]:.4g}" for k in FIELDS if k in values)
        say(f"step {done}/{self.total}  {numbers}  {rows_per_second:,.0f} rows/s")

    def stop(self) -> None: ...


class TerminalProgress:
    """A rich progress bar: loss, FVU, L0, rows per second, time left."""

    def start(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=Console(file=cast(TextIO, _Listening())),
        )
        self.task = self.bar.add_task("train", total=total, completed=done, numbers="")
        self.bar.start()

    def advance(self, done: int, rows_per_second: float, values: dict[str, float]) -> None:
        numbers = "  ".join(f"{k} {values[k]:.4g}" for k in FIELDS if k in values)
        self.bar.update(self.task, completed=done, numbers=f"{numbers}  {rows_per_second:,.0f} rows/s")

    def stop(self) -> None:
        self.bar.stop()
