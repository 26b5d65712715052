"""What a person sees while a harvest runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

__all__ = ["Counter", "counting"]

EVERY = 5.0
"""seconds between lines where there is no terminal"""


class Counter(Protocol):
    def __call__(self, rows: int, is_all: bool = False) -> None:
        """So many rows of a portion are done; ``is_all``: and that is all of it."""
        ...


@contextmanager
def counting(wanted: bool | None) -> Iterator[Counter]:
    """What is told after each batch how much is done. ``wanted`` None: one line that changes on a terminal, else a
    line now and then."""
    begun = shown = time.monotonic()
    before = 0
    terminal = sys.stderr.isatty()

    def count(rows: int, is_all: bool = False) -> None:
        nonlocal shown, before
        done, now = before + rows, time.monotonic()
        if is_all:
            before = done
        if wanted is False or now - shown < (0.2 if terminal else EVERY):
            return
        shown = now
        line = f"harvested {done:,} rows, {done / (now - begun):,.0f} a second"
        _write(f"\r{line}\x1b[K" if terminal else f"{line}\n")

    try:
        yield count
    finally:
        if terminal and shown != begun:
            _write("\r\x1b[K")


def _write(text: str) -> None:
    with suppress(OSError, ValueError):  # a terminal that is gone is no reason to stop
        sys.stderr.write(text)
        sys.stderr.flush()
