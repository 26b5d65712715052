"""Our activations from a peer's numbers, and a peer's numbers from our activations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewfire.activations import (
    Activation,
    BatchTopK,
    Gated,
    JumpReLU,
    MatchingPursuit,
    Plain,
    ReLU,
    TopK,
    WinnerTakeAll,
)

__all__ = [
    "GateBiases",
    "batchtopk",
    "gate_biases",
    "gated",
    "jumprelu",
    "k_of",
    "plain_rule",
    "pursuit",
    "thresholds",
    "topk",
]

RULES = (ReLU, TopK, BatchTopK, JumpReLU, Gated, MatchingPursuit, WinnerTakeAll)
"""those that some peer has; exactly these, for a subclass may do anything"""

SETTLED = 100
"""steps that a threshold from a file counts for, should training go on: each new one then weighs a hundredth"""


# ------------------------------------------------------------------------------------------------ from a peer


def topk(k: int, n_latents: int) -> TopK:
    """Raises ValueError where k is not from 1 to the number of latents."""
    rule = TopK(k)
    rule.build(n_latents)
    return rule


def batchtopk(k: float, threshold: float, n_latents: int) -> BatchTopK:
    """Peers write -1 for a threshold that was never set, with which they let everything positive pass: as 0 does.

    Raises ValueError where k is not above 0 and at most the number of latents.
    """
    rule = BatchTopK(k)
    rule.build(n_latents)
    rule.threshold.fill_(max(threshold, 0.0))
    rule.seen.fill_(SETTLED if threshold >= 0 else 0)
    return rule


def jumprelu(threshold: Tensor) -> JumpReLU:
    """threshold: (L,). Below 0, peers' own rectifier lets nothing more pass than at 0."""
    positive = threshold.clamp(min=0)
    first = float(positive.mean())  # a threshold of its own: training goes on from it, and does not start afresh
    rule = JumpReLU(first if first > 0 else None)
    rule.build(len(threshold))
    with torch.no_grad():
        rule.threshold.copy_(positive)
    return rule


def gated(r_mag: Tensor, b_gate: Tensor, b_mag: Tensor) -> Gated:
    """All (L,). ``b_gate`` is our encoder's bias; our magnitude path starts from what holds it already."""
    rule = Gated()
    rule.build(len(r_mag))
    with torch.no_grad():
        rule.r_mag.copy_(r_mag)
        rule.b_mag.copy_(b_mag.double() - r_mag.double().exp() * b_gate.double())
    return rule


def pursuit(k: int, n_latents: int) -> MatchingPursuit:
    """Raises ValueError where k is not at least 1."""
    rule = MatchingPursuit(k)
    rule.build(n_latents)
    return rule


# ------------------------------------------------------------------------------------------------ for a peer


class GateBiases(NamedTuple):
    """The biases of a gate and a magnitude path, each (L,)."""

    gate: Tensor
    magnitude: Tensor


def plain_rule(activation: Activation) -> Activation:
    """The activation, or a ReLU where it is one by another name.

    Raises
    ------
    ValueError
        No peer has it.
    """
    if type(activation) is Plain and activation.function == "relu":
        return ReLU()
    if type(activation) is WinnerTakeAll and not activation.sparse_inference:
        return ReLU()
    if type(activation) not in RULES:
        raise ValueError(f"the activation {activation.name!r} exists in fewfire alone; no peer can compute it")
    return activation


def k_of(activation: TopK, n_latents: int) -> int:
    """How many latents fire per row at inference."""
    return min(max(round((activation.k or 1) * activation.alpha), 1), n_latents)


def thresholds(activation: Activation, n_latents: int) -> Tensor | None:
    """(L,) what each rectified pre-activation must exceed to fire, float32; None: the mechanism is another."""
    if isinstance(activation, BatchTopK):
        return activation.threshold.detach().cpu().float().clamp(min=0).expand(n_latents).clone()
    if isinstance(activation, JumpReLU):
        return activation.threshold.detach().cpu().float().clamp(min=0)
    if isinstance(activation, WinnerTakeAll):
        lowest = activation.threshold.detach().cpu().float()
        # it fires *at* its threshold: what it must exceed is the next smaller number
        return torch.nextafter(lowest, lowest.new_zeros(())).where(lowest > 0, 0)
    return None


def gate_biases(activation: Gated, b_enc: Tensor) -> GateBiases:
    """What peers add to their products, given the encoder's bias (L,) that ours holds."""
    state = {name: value.detach().cpu().double() for name, value in activation.state_dict().items()}
    return GateBiases(b_enc - state["threshold"], state["r_mag"].exp() * b_enc + state["b_mag"])
