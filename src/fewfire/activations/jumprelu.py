"""A rectifier that jumps, with a threshold that is learned through the jump."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fewfire.activations.family import Activation, for_latents, threshold_for
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.kernels import Kernels
from fewfire.terms import AuxK, L0Penalty, Term

__all__ = ["JumpReLU"]

UNSTARTED = 0.1
"""threshold before any data was seen"""


class JumpReLU(Activation, name="jumprelu"):
    """``a = z`` where ``z`` exceeds the latent's own threshold, else 0; made sparse by ``L0Penalty``.

    Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse autoencoders".
    The jump passes no gradient to the threshold. A straight-through estimate stands for it (their equations 11, 12):
    with a window K, 1 where ``|z - threshold| < bandwidth / 2``,

        d a / d threshold = -(threshold / bandwidth) K        d [z > threshold] / d threshold = -K / bandwidth

    Thresholds are plain positive numbers in float32. Under Adam the logarithm of a threshold of 0.001, as in the paper,
    moves by a thousandth of what the threshold itself would.

    Parameters
    ----------
    threshold
        To start from. None: the one that lets as many latents fire per row as wanted, told from the data.
    bandwidth
        Width of the window, in units of the pre-activations. None: half the threshold that training starts from.
    """

    gives = frozenset({"scores", "threshold"})
    unit_norm = True
    smooth = False

    def __init__(self, threshold: float | None = None, bandwidth: float | None = None) -> None:
        super().__init__()
        for what, value in (("threshold", threshold), ("bandwidth", bandwidth)):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"expected {what} to be a number above 0, got {value}")
        self._first = threshold
        self.bandwidth = bandwidth

    def config(self) -> dict[str, float | str | None]:
        """The thresholds themselves are parameters."""
        return {"name": self.name, "threshold": self._first, "bandwidth": self.bandwidth}

    def build(self, n_latents: int) -> None:
        first = self._first or UNSTARTED
        self.threshold = nn.Parameter(torch.full((n_latents,), first, dtype=torch.float32))
        self.register_buffer("width", torch.tensor(self.bandwidth or first / 2, dtype=torch.float32))
        self.width: Tensor

    def start(self, pre_acts: Tensor, n_active: float | None = None) -> None:
        n_latents = pre_acts[0].numel()  # of feature maps, every place
        if self._first is not None or (self.threshold.float() != UNSTARTED).any():  # told, or learned before
            return
        wanted = n_active or n_latents // 16 or min(1, n_latents / 2)
        threshold = threshold_for(pre_acts, min(wanted, 0.5 * n_latents))
        if threshold > 0:  # else no row says anything, as when all are the same
            self.threshold.data.fill_(threshold)
            self.width.fill_(self.bandwidth or threshold / 2)

    def forward(self, pre_acts: Tensor, state: TrainState | None = None) -> Tensor:
        threshold = self._threshold(pre_acts)
        latents = pre_acts * (pre_acts > threshold)
        if not threshold.requires_grad or not torch.is_grad_enabled():
            return latents
        return latents + self._slope(pre_acts, threshold) * threshold.detach()

    def step(self, pre_acts: Tensor) -> Tensor:
        """(B, L) -> (B, L): 1 where a latent fires, with the straight-through gradient for its threshold alone."""
        threshold = self._threshold(pre_acts)
        return (pre_acts > threshold).to(pre_acts.dtype) + self._slope(pre_acts, threshold)

    def _slope(self, pre_acts: Tensor, threshold: Tensor) -> Tensor:
        """0 everywhere; its derivative with respect to the threshold is -K / bandwidth."""
        width = self.width.to(pre_acts.dtype)
        window = (pre_acts.detach() - threshold.detach()).abs() < width / 2
        return window * (threshold.detach() - threshold) / width

    def _threshold(self, pre_acts: Tensor) -> Tensor:
        return for_latents(self.threshold, pre_acts)

    def commit(self, out: ForwardOutput, state: TrainState) -> None:
        self.threshold.clamp_(min=0)

    def find(self, kernels: Kernels, x_in: Tensor, n_latents: int) -> None:
        kernels.above(x_in, self.threshold.detach())

    def derivative(self, pre_acts: Tensor) -> Tensor:
        return (pre_acts > self._threshold(pre_acts)).to(pre_acts.dtype)

    def margins(self, pre_acts: Tensor) -> Tensor:
        return (pre_acts - self._threshold(pre_acts)).where(pre_acts > 0, -torch.inf)

    @torch.no_grad()
    def raise_threshold(self, amount: Tensor) -> bool:
        self.threshold.add_(amount.to(self.threshold)).clamp_(min=0)
        return True

    def default_terms(self) -> list[Term]:
        return [L0Penalty(), AuxK()]
