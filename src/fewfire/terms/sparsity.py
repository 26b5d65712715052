"""What makes latents sparse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms.family import NOTHING, Term

__all__ = ["L1", "KLSparsity", "L0Penalty"]


class KLSparsity(Term, name="kl"):
    """The course's sparsity penalty: ``sum_j KL(rho || rho_hat_j)``, rho_hat_j the mean activation of unit j.

    ``KL(rho || r) = rho log(rho / r) + (1 - rho) log((1 - rho) / (1 - r))``, with both logarithms taken from the
    logits. The textbook form loses the unit for good once it saturates: log 0 is infinite, and clamping the mean
    makes its gradient exactly 0. Here the value is finite and the gradient alive at logits of +-10,000.

    The mean is over the rows of the batch. KL is convex, so mini-batches of B rows overstate the penalty of the
    whole set (Jensen), by about ``(rho / r^2 + (1 - rho) / (1 - r)^2) sigma^2 / 2B`` for a unit of mean r and
    variance sigma^2. With ``optimizer="lbfgs"`` the batch is the whole set and there is no bias (docs/textbook.md).

    Ng 2011, CS294A lecture notes, section 3. On a Gaussian latent it acts on sigmoid(mean).

    ``per_map``: of convolutional latents, the mean is over the places of a map as well, so that a map as a whole is
    active ``rho`` of the time; else each place of it is a unit of its own.
    """

    needs = frozenset({"logits"})
    steers = "rho"

    def __init__(self, weight: float = 3.0, rho: float = 0.05, per_map: bool = False) -> None:
        if not 0 < rho < 1:
            raise ValueError(f"rho is a mean activation: expected a number between 0 and 1, got {rho}")
        self.weight = weight
        self.rho = rho
        self.per_map = per_map

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        rho, z = self.rho, model.activation.logits(out.pre_acts)
        if self.per_map and z.ndim > 2:
            z = z.flatten(2).transpose(1, 2).flatten(0, 1)  # (rows * places, maps)
        log_rho_hat, log_one_minus_rho_hat = _log_mean_logistic(z)
        kl = rho * (math.log(rho) - log_rho_hat) + (1 - rho) * (math.log1p(-rho) - log_one_minus_rho_hat)
        return kl.sum()

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        mean = summary["mean_activation"]
        if not summary.get("logistic", 1.0) or mean <= 2 * self.rho:  # of a Gaussian latent, it is the mean's mean
            return _too_strong("KL", self.weight, summary)
        target = f"mean activation {mean:.3g}, rho {self.rho:g}"
        if summary["explained_variance"] < NOTHING:  # more weight would see to it that nothing is learned
            return (
                f"the KL penalty did not reach its target: {target}, and nothing else was learned; "
                f"train longer before you raise its weight (now {self.weight:g})"
            )
        return (
            f"the KL penalty did not reach its target: {target}; "
            f"raise its weight (now {self.weight:g}) by degrees, or train longer"
        )


def _log_mean_logistic(z: Tensor) -> tuple[Tensor, Tensor]:
    """(log of the mean of sigmoid(z), log of the mean of sigmoid(-z)), over the rows. (B, ...) -> (...).

    1 - rho_hat is the mean of sigmoid(-z), which keeps the digits that a subtraction from 1 loses.
    """
    if z.detach().abs().amax() < 80:  # neither mean can underflow, in float32 either
        return torch.sigmoid(z).mean(0).log(), torch.sigmoid(-z).mean(0).log()
    log_n = math.log(len(z))
    return torch.logsumexp(F.logsigmoid(z), 0) - log_n, torch.logsumexp(F.logsigmoid(-z), 0) - log_n


class L1(Term, name="l1"):
    """``mean over rows of sum_j |a_j|``: the course's second penalty.

    A linear decoder can grow while the activations shrink, and the penalty then costs nothing. Either keep its rows
    at unit norm (``network={"name": "linear", "unit_norm": True}``, the default with ReLU units), or set
    ``by_decoder_norm``, which weighs |a_j| by the norm of the decoder row it multiplies.

    Of a gated latent it is the gate's rectified pre-activation that counts (Rajamanoharan et al. 2024).

    The default weight suits data whose columns have variance near 1 (preprocess "standardize" or "center").
    """

    steers = "weight"

    def __init__(self, weight: float = 1.0, by_decoder_norm: bool = False) -> None:
        self.weight = weight
        self.by_decoder_norm = by_decoder_norm
        if by_decoder_norm:
            self.needs = frozenset({"linear_decoder"})  # type: ignore[misc]  # this instance needs more than its class

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        size: Tensor = model.activation.penalised(out).abs()
        if self.by_decoder_norm:
            size = size * model.decoder.W_dec.norm(dim=1)
        return size.sum() / len(size)

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        l0, n_positions = summary["l0"], summary["n_positions"]
        if not summary.get("logistic", 1.0) or l0 <= n_positions / 2:  # a Gaussian latent is never exactly 0
            return _too_strong("L1", self.weight, summary)
        return (
            f"the L1 penalty did nothing: {l0:.1f} of {n_positions:g} latents fire per row; "
            f"raise its weight (now {self.weight:g}) by degrees"
        )


class L0Penalty(Term, name="l0_penalty"):
    """``mean over rows of the number of latents that fire``, or how far it is from a target.

    Counting has no gradient; thresholds get the straight-through one of the activation. Without ``target``, the
    penalty of Rajamanoharan et al. 2024, "Jumping ahead" (equation 9). With it, ``(L0 / target - 1)^2``, which also
    pulls up (Gemma Scope 2; the same form as in dictionary_learning).
    """

    needs = frozenset({"threshold"})
    steers = "weight"

    def __init__(self, weight: float = 1.0, target: float | None = None) -> None:
        if target is not None and not 0 < target < math.inf:
            raise ValueError(f"target is a number of latents per row: expected a number above 0, got {target}")
        self.weight = weight
        self.target = target

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        n_active: Tensor = model.activation.step(out.pre_acts).sum() / len(out.pre_acts)
        return n_active if self.target is None else (n_active / self.target - 1).square()

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        if summary["l0"] <= summary["n_positions"] / 2:
            return _too_strong("L0", self.weight, summary)
        return (
            f"the L0 penalty did nothing: {summary['l0']:.1f} of {summary['n_positions']:g} latents fire per row; "
            f"raise its weight (now {self.weight:g}) by degrees"
        )


def _too_strong(penalty: str, weight: float, summary: Mapping[str, float]) -> str | None:
    """Latents may also be sparse because they say nothing: a penalty that is met is no success by itself."""
    explained = summary["explained_variance"]
    if not summary.get("logistic", 1.0) or not explained < NOTHING:  # not a number: no row varies
        return None
    return (
        f"the {penalty} penalty is met, but the model has learned nothing: {max(explained, 0.0):.1%} of variance "
        f"explained; lower the penalty's weight (now {weight:g}), or train longer"
    )
