"""Where sparse units start."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from fewfire.autoencoder import Autoencoder
from fewfire.terms import KLSparsity, Term

__all__ = ["start_sparse"]


@torch.no_grad()
def start_sparse(model: Autoencoder, terms: Iterable[Term]) -> None:
    """Let logistic units of a model not yet trained start at the mean activation that KL asks for.

    A bias moves by the learning rate a step, and from one half to 0.05 it is 3 / 0.001 steps: as many as there are by
    default, in which the penalty pulls at all units alike and they learn nothing else.
    """
    for term in terms:
        if isinstance(term, KLSparsity):
            biases = [p for name, p in model.encoder.named_parameters() if name.endswith("b_enc")]
            biases[-1][: model.n_latents].fill_(math.log(term.rho / (1 - term.rho)))
