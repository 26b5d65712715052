"""Where sparse units start."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fewfire.activations import threshold_for
from fewfire.autoencoder import Autoencoder
from fewfire.terms import KLSparsity, Term

__all__ = ["raise_threshold", "start_activation", "start_sparse"]


@torch.no_grad()
def start_sparse(model: Autoencoder, terms: Iterable[Term]) -> None:
    """Let logistic units of a model not yet trained start at the mean activation that KL asks for.

    A bias moves by the learning rate a step, and from one half to 0.05 it is 3 / 0.001 steps: as many as there are by
    default, in which the penalty pulls at all units alike and they learn nothing else.
    """
    for term in terms:
        if isinstance(term, KLSparsity):
            _bias(model)[: model.n_latents].fill_(math.log(term.rho / (1 - term.rho)))


@torch.no_grad()
def start_activation(model: Autoencoder, terms: Iterable[Term], rows: Tensor, target_l0: float | None) -> None:
    """Thresholds from rows (B, *input shape) in model space; with a target, so that as many latents fire as shall."""
    if target_l0 is not None:
        start_sparse(model, terms)
    pre_acts = model.encoder(rows).to(model.dtype)
    model.activation.start(pre_acts)
    margins = model.activation.margins(pre_acts)
    if target_l0 is not None and margins is not None:
        raise_threshold(model, threshold_for(margins, target_l0))


def raise_threshold(model: Autoencoder, amount: Tensor) -> None:
    """Make it harder for every latent to fire: by its threshold, or by its bias where 0 is the threshold."""
    if not model.activation.raise_threshold(amount):
        _bias(model).sub_(amount.to(model.dtype))


def _bias(model: Autoencoder) -> Tensor:
    """Of the encoder's last layer."""
    return [p.data for name, p in model.encoder.named_parameters() if name.endswith("b_enc")][-1]
