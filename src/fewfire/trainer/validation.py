"""Held-out rows: what they cost the model, and the best it has done on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch
from fewfire.engines.autograd import forward, objective
from fewfire.terms import Term

__all__ = ["Best", "measure"]


@dataclass
class Best:
    """The best validation so far, for early stopping."""

    loss: float = math.inf
    misses: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)

    def compare(self, loss: float, model: Autoencoder, keep: bool) -> None:
        """Count a miss, or take this loss for the best and, with ``keep``, the model's weights with it."""
        if not loss < self.loss:  # NaN is no best
            self.misses += 1
            return
        self.loss, self.misses = loss, 0
        if keep:
            self.weights = {n: t.detach().clone() for n, t in model.state_dict().items()}


@torch.no_grad()
def measure(model: Autoencoder, terms: Mapping[str, Term], batches: Iterable[Batch]) -> tuple[float, float]:
    """(objective, FVU) in model space, as at inference."""
    total, error, moments = 0.0, 0.0, metrics.Moments()
    for batch in batches:
        out = forward(model, batch)
        total += float(objective(model, terms, out, None)[0]) * len(out.x)
        error += float((out.recon.double() - out.x.double()).square().sum())
        moments.update(out.x.flatten(1).cpu())
    return total / moments.count, metrics.unexplained(error, moments.squared_deviation)
