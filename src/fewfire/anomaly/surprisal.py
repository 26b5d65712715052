"""Scores of different units on one scale: how surprising each is, in nats."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewfire.anomaly.expect import expect

__all__ = ["Surprisal"]

TAIL = 20
"""one in so many scores is the tail, whose slope goes on beyond the largest"""
BODY_END = 0.1
"""share of the scores above the body"""
LIMIT = 1e6
"""nats; more is not more"""


class Surprisal:
    """-log of the share of usual scores that are as large, learned from the scores of rows that a part had not seen.

    Between two of them straight lines; beyond the largest an exponential tail with the mean excess of the top
    twentieth (Pickands 1975: what exceeds a high threshold is nearly of that family). So a score tells how rare it is,
    and scores of different parts can be added.

    Anomalies among those rows make large scores look usual. So a score is never less surprising than under a heavy
    tail, P(S > s) = 0.1 / (1 + (s - q) / b) above the 90 % quantile q, whose scale b comes of the scores below it.
    """

    def __init__(self, state: Tensor) -> None:
        self._state = state
        self._scores, self._nats = state[0, :-1], state[1, :-1]
        """(K,) float64 each, ascending"""
        self._high, self._scale = state[:, -1]

    @classmethod
    def fit(cls, scores: Tensor) -> Surprisal:
        """Learn from (n,) finite scores, n at least 1."""
        scores = scores.double()
        values, counts = torch.unique(scores, return_counts=True)
        n = len(scores)
        at_least = counts.flip(0).cumsum(0).flip(0)  # how many are this large
        nats = -torch.log(at_least.double() / (n + 1))
        threshold = torch.quantile(values, 1 - 1 / TAIL)
        above = values >= threshold
        excess = ((values - threshold) * counts)[above].sum() / counts[above].sum()
        least = values[-1].abs() * 1e-6 + 1e-12  # of equal scores there is no scale
        # one more point makes the tail the last straight line
        beyond = torch.stack([values[-1] + LIMIT * torch.maximum(excess, least), nats[-1] + LIMIT])
        middle, high = torch.quantile(scores, torch.tensor([0.5, 1 - BODY_END], dtype=torch.float64))
        body = torch.maximum((high - middle) / math.log(0.5 / BODY_END), least)
        points = [torch.stack([values, nats]), beyond.unsqueeze(1), torch.stack([high, body]).unsqueeze(1)]
        return cls(torch.cat(points, 1))

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], name: str) -> Surprisal:
        """Be as the one whose ``state`` has this name; KeyError or ValueError if it cannot be."""
        state = expect(tensors, name, torch.float64, 2, None)
        points, (_, scale) = state[:, :-1], state[:, -1]
        if points.shape[1] < 2 or (points.diff() <= 0).any() or (points[1] < 0).any() or scale <= 0:
            raise ValueError(f"scale {name} does not rise")
        return cls(state)

    def __call__(self, scores: Tensor) -> Tensor:
        """(B,) -> (B,) float64, nats, never negative, never decreasing in the score."""
        scores = scores.double().clamp(self._scores[0], self._scores[-1])
        right = torch.searchsorted(self._scores, scores).clamp(1, len(self._scores) - 1)
        x0, x1 = self._scores[right - 1], self._scores[right]
        y0, y1 = self._nats[right - 1], self._nats[right]
        counted = y0 + (y1 - y0) * ((scores - x0) / (x1 - x0))
        heavy = torch.log1p((scores - self._high).clamp(min=0) / self._scale) - math.log(BODY_END)
        return torch.where(scores > self._high, torch.maximum(counted, heavy), counted)

    def state(self) -> Tensor:
        """(2, K + 1) float64; ``Surprisal(state)`` is this again."""
        return self._state
