"""Which latents fire, and how much: two answers from one encoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewfire.activations.family import Activation, for_latents
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms import L1, AuxK, GatedAux, Term

__all__ = ["Gated"]


class Gated(Activation):
    """``a = [z > t] * relu(exp(r) z + b)``: the pre-activation opens the gate, and scaled and shifted is the magnitude.

    Rajamanoharan et al. 2024, "Improving dictionary learning with gated sparse autoencoders". A penalty that shrinks
    the gates, as L1 does, leaves magnitudes alone. ``L1`` acts on ``relu(z)``, and ``GatedAux`` teaches the gates.

    The paper's magnitude path reads ``W_mag = exp(r) W_gate`` with a bias of its own, b_mag. Here ``z`` holds the
    gate's bias already, so ``b = b_mag - exp(r) b_gate``: the same functions, one product. ``t`` is 0, but
    for what ``calibrate`` and ``target_l0`` make of it.
    """

    gives = frozenset({"scores", "gate"})
    unit_norm = True
    smooth = False
    dead_below_zero = True

    def build(self, n_latents: int) -> None:
        self.r_mag = nn.Parameter(torch.zeros(n_latents, dtype=torch.float32))
        self.b_mag = nn.Parameter(torch.zeros(n_latents, dtype=torch.float32))
        self.register_buffer("threshold", torch.zeros(n_latents, dtype=torch.float32))
        self.threshold: Tensor

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        return self._magnitude(pre_acts).relu() * (self._gate(pre_acts) > 0)

    def _gate(self, pre_acts: Tensor) -> Tensor:
        return pre_acts - for_latents(self.threshold, pre_acts)

    def _magnitude(self, pre_acts: Tensor) -> Tensor:
        return self._scale(pre_acts) * pre_acts + for_latents(self.b_mag, pre_acts)

    def _scale(self, pre_acts: Tensor) -> Tensor:
        return for_latents(self.r_mag.exp(), pre_acts)

    def penalised(self, out: ForwardOutput) -> Tensor:
        return self._gate(out.pre_acts).relu()

    def derivative(self, pre_acts: Tensor) -> Tensor:
        open_ = (self._gate(pre_acts) > 0) & (self._magnitude(pre_acts) > 0)
        return open_ * self._scale(pre_acts)

    def margins(self, pre_acts: Tensor) -> Tensor:
        """Of the gates; one whose magnitude is 0 never fires."""
        return self._gate(pre_acts).where(self._magnitude(pre_acts) > 0, -torch.inf)

    def raise_threshold(self, amount: Tensor) -> bool:
        self.threshold.add_(amount.to(self.threshold))
        return True

    def default_terms(self) -> list[Term]:
        return [L1(), GatedAux(), AuxK()]
