"""What dictionaries need beside a loss and a penalty: life for dead latents, a task for gates."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms.family import Term

__all__ = ["AuxK", "GatedAux"]


class AuxK(Term):
    """Dead latents explain what the living leave over: ``||e - e_hat||^2`` averaged over rows.

    ``e = x - x_hat`` is a constant here; ``e_hat`` decodes, without bias, the ``k_aux`` largest pre-activations
    among the dead latents. Its gradient reaches the dead rows of the encoder and of the decoder, and nothing else
    revives them. Gao et al. 2024, "Scaling and evaluating sparse autoencoders", A.2.

    Of top-k latents, the dead ones are those that lose. Of rectified and gated ones, they are those whose
    pre-activations are never above 0, and a rectifier would pass them no gradient; here it passes straight through.

    ``k_aux``: None for half the target's width, as in the paper.
    """

    needs = frozenset({"scores", "linear_decoder"})

    def __init__(self, weight: float = 1 / 32, k_aux: int | None = None) -> None:
        if k_aux is not None and k_aux < 1:
            raise ValueError(
                f"k_aux is a number of dead latents: expected at least 1, or None for half the width; got {k_aux}"
            )
        self.weight = weight
        self.k_aux = k_aux

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        dead = state.dead.nonzero().squeeze(1) if state is not None else None
        if dead is None or len(dead) == 0:
            return out.recon.new_zeros(())
        k = min(self.k_aux or max(1, math.prod(out.x.shape[1:]) // 2), len(dead))
        top = out.pre_acts[:, dead].topk(k, dim=1, sorted=False)
        values = top.values.relu()
        if model.activation.dead_below_zero:  # all of them are 0 then: the gradient passes by the closed rectifier
            values = values.detach() + (top.values - top.values.detach())
        residual = (out.x - out.recon).detach().flatten(1)
        estimate = F.embedding_bag(dead[top.indices], model.decoder.W_dec, per_sample_weights=values, mode="sum")
        return F.mse_loss(estimate, residual, reduction="sum") / len(residual)


class GatedAux(Term, name="gated_aux"):
    """The gates alone reconstruct: ``||x - decode(relu(gate pre-activations))||^2``, averaged over rows.

    A gate is 0 or 1 and passes no gradient; this gives it one. The decoder is a constant here, so that gates learn to
    say which latents matter, and the decoder does not learn from their sizes. Rajamanoharan et al. 2024, "Improving
    dictionary learning with gated sparse autoencoders", equation 8.
    """

    needs = frozenset({"gate"})

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        gates = model.activation.penalised(out)
        learning = torch.is_grad_enabled() and gates.requires_grad
        with torch.enable_grad():  # the gradient is taken at the gates, of any decoder, and goes no further
            at = gates.detach().requires_grad_()
            error: Tensor = F.mse_loss(model.output(model.decoder(at)), out.x, reduction="sum") / len(out.x)
            if not learning:
                return error.detach()
            (gradient,) = torch.autograd.grad(error, at)
        through: Tensor = (gates * gradient).sum()
        return error.detach() + (through - through.detach())
