"""Scores of different units on one scale: how surprising each is, in nats."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fewfire.anomaly.expect import expect

__all__ = ["Surprisal"]

TAIL = 20
"""one in so many scores is the tail, whose slope goes on beyond the largest"""
LIMIT = 1e6
"""nats; more is not more"""


class Surprisal:
    """-log of the share of usual scores that are as large, learned from the scores of rows that a part had not seen.

    Between two of them straight lines; beyond the largest an exponential tail with the mean excess of the top
    twentieth (Pickands 1975: what exceeds a high threshold is nearly of that family). So a score tells how rare it is,
    and scores of different parts can be added.
    """

    def __init__(self, state: Tensor) -> None:
        self._scores, self._nats = state[0], state[1]
        """(K,) float64 each, ascending"""

    @classmethod
    def fit(cls, scores: Tensor) -> Surprisal:
        """Learn from (n,) finite scores, n at least 1."""
        values, counts = torch.unique(scores.double(), return_counts=True)
        n = len(scores)
        at_least = counts.flip(0).cumsum(0).flip(0)  # how many are this large
        nats = -torch.log(at_least.double() / (n + 1))
        threshold = torch.quantile(values, 1 - 1 / TAIL) if len(values) > 1 else values[0]
        above = values >= threshold
        excess = ((values - threshold) * counts)[above].sum() / counts[above].sum()
        scale = torch.maximum(excess, values[-1].abs() * 1e-6 + 1e-12)  # of equal scores there is none
        # one more point makes the tail the last straight line
        beyond = torch.stack([values[-1] + LIMIT * scale, nats[-1] + LIMIT])
        return cls(torch.stack([torch.cat([values, beyond[:1]]), torch.cat([nats, beyond[1:]])]))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], name: str) -> Surprisal:
        """Be as the one whose ``state`` has this name; KeyError or ValueError if it cannot be."""
        state = expect(tensors, name, torch.float64, 2, None)
        if state.shape[1] < 2 or (state.diff() <= 0).any() or (state[1] < 0).any():
            raise ValueError(f"scale {name} does not rise")
        return cls(state)

    def __call__(self, scores: Tensor) -> Tensor:
        """(B,) -> (B,) float64, nats, never negative, never decreasing in the score."""
        scores = scores.double().clamp(self._scores[0], self._scores[-1])
        right = torch.searchsorted(self._scores, scores).clamp(1, len(self._scores) - 1)
        x0, x1 = self._scores[right - 1], self._scores[right]
        y0, y1 = self._nats[right - 1], self._nats[right]
        return y0 + (y1 - y0) * ((scores - x0) / (x1 - x0))

    def state(self) -> Tensor:
        """(2, K) float64; ``Surprisal(state)`` is this again."""
        return torch.stack([self._scores, self._nats])
