"""What makes latents Gaussian."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms.family import Term

__all__ = ["GaussianKL"]


class GaussianKL(Term, name="gaussian_kl"):
    """``mean over rows of sum_j KL(N(mean_j, var_j) || N(0, 1))``, in closed form.

    ``1/2 (mean^2 + var - 1 - log var)``: Kingma & Welling 2014, appendix B. The weight is the beta of Higgins et al.
    2017; a schedule of it (``gaussian_kl.weight``) is a warm-up. ``MSE(weight=0.5)`` beside it is a Gaussian likelihood
    of unit variance, ``BCE()`` a Bernoulli one.

    ``free_bits``: nats per latent, averaged over the batch, that cost nothing extra, so that a latent is not given up
    before it was used (Kingma et al. 2016, appendix C.8).
    """

    needs = frozenset({"mean_logvar"})

    def __init__(self, weight: float = 1.0, free_bits: float = 0.0) -> None:
        if not free_bits >= 0:
            raise ValueError(f"free_bits are nats per latent: expected a number from 0, got {free_bits}")
        self.weight = weight
        self.free_bits = free_bits

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        mean, logvar = model.activation.mean_logvar(out.pre_acts)
        # expm1 keeps the digits near the prior, where var - 1 - log var is the square of something small
        kl = (mean.square() + (torch.expm1(logvar) - logvar)) / 2
        per_latent = kl.sum(0) / len(kl)
        total: Tensor = (per_latent.clamp_min(self.free_bits) if self.free_bits else per_latent).sum()
        return total

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        if summary["explained_variance"] > 0.01:
            return None
        return (
            f"the latents carry nothing about the rows (posterior collapse); lower the weight of {self.name} "
            f"(now {self.weight:g}), raise it slowly by a schedule, or give it free_bits"
        )
