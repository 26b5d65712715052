"""Small dense autoencoders, trained at once and not for long: what they miss, and where they disagree."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Generator, Tensor

from fewfire.anomaly.expect import expect
from fewfire.anomaly.part import Part, Reading, draw
from fewfire.rows import aligned

__all__ = ["Ensemble"]

SHARE = 0.75
"""of the rows that each member is fitted on: enough to agree, and four of sixteen have not seen a row"""
BLOCK = 128
"""columns that a member sees of a wide table, about"""
FEW = 4096
"""rows that show what is usual of a column"""
LOG_SCALE = (-2.0, 3.0)
"""bounds of a column's learned log-scale, softly kept: below, a column that is easy would be all the score"""


@final
class Ensemble(Part, name="ensemble"):
    """``members`` autoencoders d -> hidden -> hidden -> (centre, log-scale) of each column, no bottleneck, no noise.

    Trained on the Laplace likelihood |x - centre| / scale + log scale: a column that the others do not foretell gets a
    wide scale and stops deciding, and far rows, which a square would make the whole gradient, pull no harder than
    others. Few steps are the regulariser: what is common is learned first, and an outlier among the training rows
    is not learned at all (Zhou & Paffenroth 2017 remove such rows; stopping early needs no second loss).

    Two scores. ``surprise``: mean over columns and members of that likelihood. ``disagreement``: variance of the
    centres between members (Lakshminarayanan et al. 2017, "Deep ensembles", section 2.4): they agree where they were
    taught.
    """

    def __init__(
        self,
        view: Sequence[str] = ("standard", "asinh"),
        members: int = 16,
        hidden: int = 64,
        steps: int = 200,
        batch_size: int = 64,
    ) -> None:
        self.view = view
        self.members, self.hidden, self.steps, self.batch_size = members, hidden, steps, batch_size
        self._weights: list[Tensor] = []

    @torch.inference_mode(False)  # whatever the caller is in
    @torch.enable_grad()
    def fit(self, x: Tensor, generator: Generator) -> None:
        n, d = x.shape
        drawn, self.seen = draw(n, self.members, max(1, int(SHARE * n)), generator)
        self._order = self._deal(d, generator)
        self._weights = [w.requires_grad_() for w in self._start(self._order.shape[1], generator)]
        blocks = x[:, self._order]
        block_of = torch.arange(self.members).unsqueeze(1) % len(self._order)
        optimizer = torch.optim.Adam(self._weights, betas=(0.9, 0.99))
        for step in range(self.steps):
            # from 0 in 20 steps, then down by a root to 0: the last steps average out the order of the rows
            rate = 3e-3 * min(1.0, (step + 1) / 20) * math.sqrt(1 - step / self.steps)
            optimizer.param_groups[0]["lr"] = rate
            which = torch.randint(drawn.shape[1], (self.members, self.batch_size), generator=generator)
            batch = blocks[drawn.gather(1, which), block_of]
            loss = _nll(batch, *self._decode(batch)).mean((1, 2)).sum()  # a sum: each member has its own gradient
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        self._weights = [_by_output(w.detach()) for w in self._weights]
        sample = x[:FEW]
        everyone = torch.ones(self.members, len(sample), dtype=torch.bool)
        with torch.no_grad():
            self._usual_nll = self._columns(sample, everyone)[0].mean(0)

    def _deal(self, d: int, generator: Generator) -> Tensor:
        """(blocks, width) columns of each block: one of all columns, or several of columns dealt at random.

        Member m sees block m modulo their number; each block has two members at least, or none could disagree.
        """
        count = 1
        while count * BLOCK < d and 2 * count <= self.members // 2:
            count *= 2
        width = -(-d // count)
        order = torch.arange(d) if count == 1 else torch.randperm(d, generator=generator)
        return torch.cat([order, order[: count * width - d]]).view(count, width)

    def _start(self, d: int, generator: Generator) -> list[Tensor]:
        """Uniform in +-1/sqrt(inputs), weights and biases, as torch's Linear starts."""
        weights = []
        for shape, inputs in self._shapes(d):
            uniform = torch.rand(shape, dtype=torch.float32, generator=generator)
            weights.append((2 * uniform - 1) / math.sqrt(inputs))
        return weights

    def _shapes(self, d: int) -> list[tuple[tuple[int, int, int], int]]:
        """Of weight and bias of each layer, in turn; and how many inputs the layer has."""
        layers = pairwise((d, self.hidden, self.hidden, 2 * d))
        return [((self.members, rows, outputs), inputs) for inputs, outputs in layers for rows in (inputs, 1)]

    def _decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B, d) -> centre and log-scale, each (M, B, d)."""
        *hidden, weight, bias = self._weights
        for w, b in zip(hidden[::2], hidden[1::2], strict=True):
            x = torch.relu(torch.baddbmm(b, _lined_up(x), w))
        centre, raw = torch.baddbmm(bias, _lined_up(x), weight).chunk(2, 2)
        low, high = LOG_SCALE
        return centre, low + (high - low) * torch.sigmoid((raw - (low + high) / 2) * 4 / (high - low))

    def read(self, x: Tensor, trusted: Tensor) -> dict[str, Reading]:
        with torch.no_grad():
            nll, variance = self._columns(x, trusted)
        # a strange value makes the members disagree about the columns beside it: which is no reason to name those
        share = (nll - self._usual_nll).clamp(min=0)
        return {"surprise": Reading(nll.mean(1), share), "disagreement": Reading(variance.mean(1), share)}

    def _columns(self, x: Tensor, trusted: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) each: likelihood and variance, over the members that may judge."""
        count, width = self._order.shape
        blocks = x[:, self._order].transpose(0, 1)  # (blocks, B, width)
        centre, log_scale = self._decode(blocks.repeat(self.members // count, 1, 1))
        weight = trusted.float().view(-1, count, len(x), 1)
        n = weight.sum(0)
        centre = centre.view(-1, count, len(x), width)
        nll = (_nll(blocks, centre, log_scale.view_as(centre)) * weight).sum(0) / n.clamp(min=1)
        mean = (centre * weight).sum(0) / n.clamp(min=1)
        variance = ((centre - mean).square() * weight).sum(0) / (n - 1).clamp(min=1)
        where = self._order.flatten()
        result = x.new_full((2, len(x), x.shape[1]), math.nan)
        result[:, :, where] = torch.stack([nll, variance]).transpose(1, 2).flatten(2)
        return result[0], result[1]

    def state(self) -> dict[str, Tensor]:
        weights = {f"weight_{i}": w for i, w in enumerate(self._weights)}
        return {
            **weights,
            "order": self._order,
            "seen": self.seen,
            "usual_nll": self._usual_nll,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.seen = expect(state, "seen", torch.bool, self.members, None)
        self._usual_nll = expect(state, "usual_nll", torch.float32, None)
        d = len(self._usual_nll)
        self._order = expect(state, "order", torch.int64, None, None)
        count, width = self._order.shape
        if self.members % count or set(self._order.flatten().tolist()) != set(range(d)):
            raise ValueError("blocks do not hold every column")
        self._weights = [
            _by_output(expect(state, f"weight_{i}", torch.float32, *shape))
            for i, (shape, _) in enumerate(self._shapes(width))
        ]


def _by_output(weight: Tensor) -> Tensor:
    """The same (M, inputs, outputs), what makes an output side by side: then, of rows that are lined up, a product
    has the same bits wherever a row is in the batch."""
    return weight.mT.contiguous().mT


def _lined_up(x: Tensor) -> Tensor:
    return aligned(x.flatten(0, 1)).view(x.shape)


def _nll(x: Tensor, centre: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of a Laplace distribution, without its constant log 2."""
    return (x - centre).abs() * torch.exp(-log_scale) + log_scale
