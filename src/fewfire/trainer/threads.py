"""How many threads a step of a given size is worth.

Two threads wait for each other at the end of every product. For small products that costs more than it gains, and
when another program wants the processor as well it costs ten times more: the demo's 9 seconds became 110.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["threads", "worthwhile_threads"]

SMALL_PRODUCT = 1 << 26
"""rows x columns x latents of one product, below which one thread does it"""


def worthwhile_threads(rows: int, columns: int, latents: int) -> int:
    """1 for a small product, else as many as torch was given."""
    return 1 if rows * columns * latents < SMALL_PRODUCT else torch.get_num_threads()


@contextmanager
def threads(n: int) -> Iterator[None]:
    """torch with n threads inside, with as many as before outside."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
