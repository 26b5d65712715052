"""What a person sees while a bundle is built: a bar on a terminal, a line a stage elsewhere when it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fewfire.trainer.progress import say

__all__ = ["Stages"]

SECONDS = 5.0
"""between two lines"""


class Stages:
    """``with stages("reading", n) as advance: advance(rows)``. ``wanted`` False: nothing is shown."""

    def __init__(self, wanted: bool | None = None) -> None:
        self.wanted = wanted is not False
        self.seconds: dict[str, float] = {}
        """how long each stage took"""

    @contextmanager
    def __call__(self, name: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
        start = time.monotonic()
        shown = self._bar if self.wanted and sys.stderr.isatty() else self._lines
        with shown(name, total) as advance:
            yield advance
        self.seconds[name] = time.monotonic() - start

    @contextmanager
    def _bar(self, name: str, total: int | None) -> Iterator[Callable[[int], Any]]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda n: bar.advance(task, n)

    @contextmanager
    def _lines(self, name: str, total: int | None) -> Iterator[Callable[[int], Any]]:
        done, shown = 0, time.monotonic()

        def advance(n: int) -> None:
            nonlocal done, shown
            done += n
            if self.wanted and time.monotonic() - shown > SECONDS:
                shown = time.monotonic()
                say(f"{name}: {done:,}" + (f" of {total:,}" if total else ""))

        yield advance
