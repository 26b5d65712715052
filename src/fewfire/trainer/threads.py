"""How many threads a step of a given size is worth.

Two threads wait for each other at the end of every product. For small products that costs more than it gains, and
when another program wants the processor as well it costs ten times more: the demo's 9 seconds became 110.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads", "worthwhile_threads"]

SMALL_PRODUCT = 1 << 26
"""rows x columns x latents of one product, below which one thread does it"""

_lock = threading.Lock()
_at_work: list[int] = []
"""which of Python's threads are inside ``threads``"""
_outside = 1
"""as many threads as torch had before the first of them came"""


def worthwhile_threads(rows: int, columns: int, latents: int) -> int:
    """1 for a small product, else as many as torch was given."""
    if rows * columns * latents < SMALL_PRODUCT:
        return 1
    with _lock:
        return _given()


def _given() -> int:
    """As many threads as torch was given here. For a holder of the lock.

    A new thread of Python begins with the number that torch was told last, by any thread: while others train, with
    theirs.
    """
    return _outside if _at_work and threading.get_ident() not in _at_work else torch.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """torch with n threads inside, with as many as before outside, also when several threads of Python do this."""
    global _outside
    me = threading.get_ident()
    with _lock:
        before = _given()
        if not _at_work:
            _outside = before
        _at_work.append(me)
        torch.set_num_threads(n)
    try:
        yield
    finally:
        with _lock:
            _at_work.remove(me)
            torch.set_num_threads(before)
