"""What keeps weights small and latents steady."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import rng
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms.family import Term

__all__ = ["Contractive", "Orthogonality", "WeightDecay"]


class WeightDecay(Term, name="weight_decay"):
    """``1/2 sum of squared weights``, biases left out: the course's regularisation with its lambda as weight."""

    def __init__(self, weight: float = 1e-4) -> None:
        self.weight = weight

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        weights = [p for p in model.parameters() if p.ndim > 1]
        return torch.stack([w.square().sum() for w in weights]).sum() / 2


class Orthogonality(Term):
    """``mean over latents of sum_k cos^2`` of a decoder row with every other: features that do not repeat each other.

    Korznikov et al. 2025, "OrtSAE: orthogonal sparse autoencoders", penalise the largest cosine; this is the sum.
    """

    needs = frozenset({"linear_decoder"})

    def __init__(self, weight: float = 0.3) -> None:
        self.weight = weight

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        rows = F.normalize(model.decoder.W_dec, dim=1)
        # of the smaller Gram matrix; the rows' cosines with themselves, 1 each, are taken off
        gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
        total: Tensor = (gram.square().sum() - rows.square().sum(1).square().sum()) / len(rows)
        return total


class Contractive(Term):
    """``mean over rows of ||J||_F^2``, J the derivatives of the latents with respect to the input, as at inference.

    Latents that hardly move when the row does. Rifai et al. 2011, "Contractive Auto-Encoders", equation 3. Where one
    linear layer leads to latents that depend on their own pre-activation alone, in closed form:
    ``sum_j f'(z_j)^2 ||W_j||^2`` (their equation 5).

    Parameters
    ----------
    method
        "exact": the closed form where there is one, else one backward pass per latent. "hutchinson": an unbiased
        estimate from ``probes`` backward passes, ``E_v ||v^T J||^2`` over random signs v. "auto": the closed form
        where there is one, else the estimate.
    probes
        How many random sign vectors per row the estimate averages over.
    """

    METHODS = ("auto", "exact", "hutchinson")

    def __init__(self, weight: float = 0.1, method: str = "auto", probes: int = 1) -> None:
        if method not in self.METHODS:
            raise ValueError(f"expected method to be one of {', '.join(self.METHODS)}; got {method!r}")
        if probes < 1:
            raise ValueError(f"expected at least one probe, got {probes}")
        self.weight = weight
        self.method = method
        self.probes = probes

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        slope = model.activation.derivative(out.pre_acts)
        if self.method != "hutchinson" and slope is not None and "linear_encoder" in model.gives:
            closed: Tensor = (slope.square() @ model.encoder.W_enc.square().sum(1)).mean()
            return closed
        keep_graph = torch.is_grad_enabled()
        with torch.enable_grad():
            x = out.x_in.detach().requires_grad_()
            latents = model.codes(x)[1].flatten(1)
            total = x.new_zeros(())
            for v in self._vectors(latents, state):
                (row,) = torch.autograd.grad(latents, x, v.expand_as(latents), create_graph=True)
                total = total + row.square().sum()
        n_samples = self.probes if self._estimates else 1
        total = total / (n_samples * len(x))
        return total if keep_graph else total.detach()

    @property
    def _estimates(self) -> bool:
        return self.method != "exact"

    def _vectors(self, latents: Tensor, state: TrainState | None) -> Iterator[Tensor]:
        """Random signs, or each latent in turn: what J is multiplied with from the left."""
        if not self._estimates:
            yield from torch.eye(latents.shape[1], dtype=latents.dtype, device=latents.device)
            return
        key = (0, "held out") if state is None else (state.seed, state.step)
        generator = rng.generator(*key, "contractive", device=latents.device)
        for _ in range(self.probes):
            yield torch.randint(0, 2, latents.shape, generator=generator, device=latents.device).to(latents) * 2 - 1
