"""What every term answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from fewfire.contracts import ForwardOutput, Named, TrainState

__all__ = ["NOTHING", "Term"]

NOTHING = 0.05
"""share of variance explained, below which a sparse model has learned nothing worth having"""


class Term(Named):
    """A scalar to lower, given the model and one forward pass.

    ``needs`` names what the model must give; a model whose ``gives`` lacks it is refused with a sentence:

    ============== ==================================================================================
    logits         ``activation.logits(pre_acts)``: the latents are logistic functions of these
    scores         ``pre_acts`` (B, L) rank the latents, one each
    linear_encoder ``encoder.W_enc`` (P, D): the pre-activations are linear in the input
    linear_decoder ``decoder.W_dec`` (L, D): the reconstruction is linear in the latents
    output_logits  ``out.recon_logits``: the reconstruction is a logistic function of these
    mean_logvar    ``activation.mean_logvar(pre_acts)``: the latents are Gaussian
    threshold      ``activation.step(pre_acts)``: which latents fire, with a gradient for their thresholds
    gate           ``activation.penalised(out)`` opens the latents, and gets no gradient through them
    residual       inputs and reconstructions are of one space, so that one can be taken off the other
    ============== ==================================================================================
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    steers: ClassVar[str | None] = None
    """the setting by which ``target_l0`` makes latents fire more rarely or more often; None: it does not act on that"""
    weight: float

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, model: Any, out: ForwardOutput, state: TrainState | None = None) -> Tensor:
        """The term's value before its weight: a scalar. ``state`` is None outside training."""
        raise NotImplementedError

    def verdict(self, summary: Mapping[str, float]) -> str | None:
        """A sentence when training ended without this term having done its work.

        ``summary``: evaluate's dict; ``n_positions``, the number of latents with every position of a map counted; and
        ``logistic``, 0 where ``mean_activation`` is that of Gaussian latents and says nothing of a mean of sigmoids.
        """
        return None
