"""The detector: parts that look at rows in different ways, their scores on one scale, and the sum of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewfire.anomaly.ensemble import Ensemble
from fewfire.anomaly.expect import expect
from fewfire.anomaly.known import Known
from fewfire.anomaly.part import Part
from fewfire.anomaly.prototypes import Prototypes
from fewfire.anomaly.surprisal import Surprisal
from fewfire.anomaly.views import Views
from fewfire.rng import generator

__all__ = ["CHUNK", "MAX_ROWS", "Detector", "Findings", "default_parts"]

CHUNK = 256
"""rows of a batch, always: products of other sizes may round otherwise, and a row's score must be its own"""
MAX_ROWS = 65_536
"""training rows at most: more teach these members nothing"""
CALIBRATION_ROWS = 10_000
"""training rows at most whose scores measure new ones: the largest usual score is then one in ten thousand"""
POWER = 3
"""of the mean over readings: one that is sure counts more than several that are not, as a maximum would have it, and
agreement still counts, as a mean would"""


class Findings(NamedTuple):
    """Of B rows."""

    score: Tensor
    """(B,) float64, nats: how surprising the row is, the cubic mean of the readings"""
    share: Tensor | None
    """(B, D) float64, each column's share of the score, of sum 1; None where it was not asked for"""


def default_parts() -> list[Part]:
    """What a detector is made of, whatever the table."""
    return [Ensemble(view=("standard", "asinh")), Prototypes(view=("range", "asinh")), Prototypes(view=("range",))]


class Detector:
    """How unusual rows of a table are, and which columns make them so.

    Each part reads scores off a row; each score is turned into nats of surprisal by the scores of training rows, judged
    only by members that had not seen them; the row's score is the cubic mean of these. A column that never varied adds
    to it where it has another value. Scores depend on the row alone: not on the rows beside it, not on chance. A row
    that is a training row, bit for bit, is judged as such: only by members that had not seen it.

    Parameters
    ----------
    parts
        None: ``default_parts``.
    seed
        Of everything random in ``fit``.
    """

    def __init__(self, parts: Sequence[Part] | None = None, seed: int = 0) -> None:
        self.parts = None if parts is None else list(parts)
        self.seed = seed

    def fit(self, rows: Tensor) -> Detector:
        """Learn from (n, D) finite float64 rows; n at least 1. Of more than ``MAX_ROWS``, give a sample."""
        n = len(rows)
        parts = default_parts() if self.parts is None else self.parts
        self.views = Views.fit(rows, {name for part in parts for name in part.view})
        # One row has no scale; constant columns have none either. Then only what is strange is unusual.
        self.fitted = parts if len(self.views.columns) else []
        for number, part in enumerate(self.fitted):
            part.fit(self.views(rows, part.view), generator(self.seed, "anomaly", number))
        self.known = Known.fit(rows)
        which = torch.randperm(n, generator=generator(self.seed, "calibration"))[:CALIBRATION_ROWS].sort().values
        blocks = [self._read(_padded(block), explain=False)[0] for block in torch.split(rows[which], CHUNK)]
        readings = [torch.cat(scores)[: len(which)] for scores in zip(*blocks, strict=True)]
        self.scales = [Surprisal.fit(scores) for scores in readings]
        self.n_seen = n
        fused = [_fused(self._nats(scores), CHUNK) for scores in blocks]  # by chunks, as ever: the same bits
        self.usual = torch.cat(fused)[: len(which)].sort().values
        """(min(n, 10000),) ascending: scores of training rows as if they had come later"""
        return self

    def __call__(self, rows: Tensor, *, explain: bool = False) -> Findings:
        """Score (B, D) finite float64 rows."""
        found = [self._block(block, explain) for block in torch.split(rows, CHUNK)] or [self._block(rows, explain)]
        shares = torch.cat([f.share for f in found if f.share is not None]) if explain else None
        return Findings(torch.cat([f.score for f in found]), shares)

    def _block(self, rows: Tensor, explain: bool) -> Findings:
        n = len(rows)
        padded = _padded(rows)
        readings, shares = self._read(padded, explain)
        nats = self._nats(readings)
        strange = math.log(self.n_seen + 1) * self.views.strange(padded).double()  # of a value that none of n rows had
        total = (_fused(nats, CHUNK) + strange.sum(1))[:n]
        if not explain:
            return Findings(total, None)
        share = torch.zeros_like(padded)
        for one, by_column in zip(nats, shares, strict=True):
            share += one.unsqueeze(1) * by_column  # not cubed: columns that several readings name are surer
        share *= _fused(nats, CHUNK).unsqueeze(1) / share.sum(1, keepdim=True).clamp(min=1e-300)
        share = (share + strange)[:n]
        return Findings(total, share / share.sum(1, keepdim=True).clamp(min=1e-300))

    def _read(self, rows: Tensor, explain: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Scores (B,) and shares (B, D) by each reading."""
        numbers = self.known(rows)
        scores, shares = [], []
        for part in self.fitted:
            for reading in part.read(self.views(rows, part.view), part.trusted(numbers)).values():
                scores.append(reading.score.double())
                if explain:
                    shares.append(self.views.by_column(reading.share, part.view))
        return scores, shares

    def _nats(self, readings: Sequence[Tensor]) -> list[Tensor]:
        return [scale(scores) for scale, scores in zip(self.scales, readings, strict=True)]

    @property
    def n_columns(self) -> int:
        """D, of the rows that it takes."""
        return self.views.n_columns

    def check(self) -> None:
        """Fail if the parts do not fit together, as in a file that was put together by hand.

        Raises
        ------
        ValueError, RuntimeError, KeyError, IndexError
            A size or a value is wrong.
        """
        found = self(torch.zeros(1, self.n_columns, dtype=torch.float64), explain=True)
        if not all(x is not None and torch.isfinite(x).all() for x in found):
            raise ValueError("scores are not finite")

    # ------------------------------------------------------------------------------ as tensors and settings

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by name, and plain settings: what ``restore`` needs."""
        tensors = {f"views.{name}": tensor for name, tensor in self.views.state().items()}
        for i, part in enumerate(self.fitted):
            tensors |= {f"parts.{i}.{name}": tensor for name, tensor in part.state().items()}
        tensors |= {f"scales.{i}": scale.state() for i, scale in enumerate(self.scales)}
        settings = {"parts": [part.config() for part in self.fitted], "n_seen": self.n_seen, "seed": self.seed}
        return {**tensors, "usual": self.usual, **self.known.state()}, settings

    @classmethod
    def restore(cls, tensors: dict[str, Tensor], settings: dict[str, Any]) -> Detector:
        """The detector whose ``state`` this is. Its tensors are compared with its settings, not believed.

        Raises
        ------
        ValueError, TypeError, KeyError, IndexError, RuntimeError
            The parts do not fit together, as in a file that was put together by hand.
        """
        detector = cls(seed=settings["seed"])
        detector.n_seen = settings["n_seen"]
        detector.usual = expect(tensors, "usual", torch.float64, None)
        detector.views = Views.restore(_under("views.", tensors))
        detector.known = Known.restore(tensors, detector.n_seen)
        detector.fitted = [Part.from_config(config) for config in settings["parts"]]
        for i, part in enumerate(detector.fitted):
            part.restore(_under(f"parts.{i}.", tensors))
            expect({"seen": part.seen}, "seen", torch.bool, None, detector.n_seen)
        scales = _under("scales.", tensors)
        detector.scales = [Surprisal.restore(scales, str(i)) for i in range(len(scales))]
        if (detector.usual.diff() < 0).any() or detector.state()[0].keys() != tensors.keys():
            raise ValueError("usual scores are not in order, or there are tensors of no part")
        return detector


def _padded(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows.new_zeros(CHUNK - len(rows), rows.shape[1])])


def _fused(nats: Sequence[Tensor], n: int) -> Tensor:
    """(n,) one score of several readings, each (n,): their power mean; 0 where there is none."""
    if not nats:
        return torch.zeros(n, dtype=torch.float64)
    return torch.stack(tuple(nats)).pow(POWER).mean(0).pow(1 / POWER)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
