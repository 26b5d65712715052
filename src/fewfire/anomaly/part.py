"""A way to find a row unusual: what every part of the detector is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fewfire.contracts import Named

__all__ = ["Part", "Reading", "draw"]


class Reading(NamedTuple):
    """What a part says of B rows."""

    score: Tensor
    """(B,) larger is more unusual, in a unit of the part's own"""
    share: Tensor
    """(B, d) not negative: how the columns of the view divide the score; not yet to sum 1"""


class Part(Named):
    """An ensemble of small autoencoders that looks at rows in one way, and reads one or several scores off them.

    Each member is fitted on rows of its own, some of those given, and ``seen`` says which. A training row is judged
    by the members that have not seen it: so its score is what it would be had it come later, and the scores of
    training rows are a measure for new ones (Breiman 1996, "Out-of-bag estimation").

    To add one: a class in a file of its own, imported in ``__init__.py``; give it to ``Detector(parts=...)``.
    """

    view: Sequence[str]
    """names of the views it sees, side by side"""
    seen: Tensor
    """(M, n) bool: which training rows each member was fitted on"""

    @abstractmethod
    def fit(self, x: Tensor, generator: Generator) -> None:
        """Learn from (n, d) float32 rows, n at least 2. Randomness comes from the generator alone."""

    @abstractmethod
    def read(self, x: Tensor, trusted: Tensor) -> dict[str, Reading]:
        """Scores by name of (B, d) rows: row b by those members m where ``trusted[m, b]``, one at least."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that was learned."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Be as the part was whose ``state`` this is."""

    def trusted(self, numbers: Tensor) -> Tensor:
        """(M, B) bool: who may judge rows that are the training rows of these numbers, or none where -1.

        A training row that all members have seen, all judge.
        """
        fresh = ~self.seen[:, numbers] | (numbers < 0)
        return fresh | ~fresh.any(0)


def draw(n: int, members: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """``size`` different rows of n for each member: their numbers (members, size), and ``seen`` (members, n)."""
    drawn = torch.stack([torch.randperm(n, generator=generator)[:size] for _ in range(members)])
    return drawn, torch.zeros(members, n, dtype=torch.bool).scatter_(1, drawn, True)
