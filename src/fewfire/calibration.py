"""How many latents fire: changed by the threshold or by k after training, and for dead latents within it."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from fewfire.activations import threshold_for
from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.rows import check_finite
from fewfire.sources import open_source

__all__ = ["calibrate", "lift_dead", "raise_threshold"]

LIFT = 20
"""learning rates a step"""
MOST_VALUES = 1 << 26
"""rows times latents that are looked at: 256 MiB"""
FEWEST_ROWS, MOST_ROWS = 1024, 65_536


@torch.no_grad()
def calibrate(model: Autoencoder | HasModel, source: Any, target_l0: float) -> float:
    """Let ``target_l0`` latents fire per row on average, without training. Changes the model in place.

    Where a mechanism has a threshold (BatchTopK, JumpReLU, Gated), one number is added to all its thresholds; of
    rectified units, which fire above 0, it is taken off their biases, and so off what they say. Where it has a k, k is
    set to the nearest whole number.

    Parameters
    ----------
    model
        An Autoencoder, or a fitted estimator.
    source
        A Source, or whatever ``open_source`` makes one of, in data space. Up to 65,536 of its rows are looked at, fewer
        of wide models.
    target_l0
        Latents per row.

    Returns
    -------
    float
        How many do fire, on the rows that were looked at.

    Raises
    ------
    ValueError
        The activation has neither threshold nor k; there are not so many latents, or not so many can fire; a row
        holds NaN or infinity.
    """
    model = as_model(model)
    n_latents = math.prod(model.latent_shape)  # of feature maps, every place
    wanted: Any = target_l0
    if not isinstance(wanted, Real) or not 0 < target_l0 < n_latents:
        raise ValueError(f"expected target_l0 above 0 and below {n_latents} latents, got {wanted!r:.60}")
    opened = open_source(source)
    model.layout.check_columns(opened.layout.columns)
    if tuple(opened.row_shape) != model.input_shape:
        raise ValueError(f"expected rows of shape {model.input_shape}, got {tuple(opened.row_shape)}")
    n_rows = max(FEWEST_ROWS, min(MOST_ROWS, MOST_VALUES // n_latents))
    batch = next(iter(opened.batches(min(n_rows, opened.n_rows or n_rows))))
    check_finite(batch.x_in, "the data", batch.rows, opened.layout.columns)
    rows = model.to_model_space(batch.x_in.to(model.device)).to(model.dtype)
    pre_acts = torch.cat([model.encoder(part).to(model.dtype) for part in torch.split(rows, 4096)])
    margins = model.activation.margins(pre_acts)
    if margins is not None:
        raise_threshold(model, threshold_for(margins, target_l0))
    elif not model.activation.set_k(target_l0):
        raise ValueError(
            f"activation {model.activation.name!r} has no threshold and no k to move; train it with target_l0, or use "
            "another activation, such as jumprelu"
        )
    active = model.activation.active(model.encode(batch.x_in))
    return float(active.flatten(1).sum(1).double().mean())


def raise_threshold(model: Autoencoder, amount: Tensor) -> None:
    """Make it harder for every latent to fire: by its threshold, or by its bias where 0 is the threshold."""
    if not model.activation.raise_threshold(amount):
        _lower_bias(model, amount)


def lift_dead(model: Autoencoder, dead: Tensor, lr: float) -> None:
    """Let learned thresholds of dead latents (L,) sink to 0, or their biases rise, by a few learning rates.

    Called at every step, until they fire.

    No gradient tells a latent that never fires that it asks for too much. It is the rule by which experts are kept in
    use without a loss in Wang et al. 2024, "Auxiliary-loss-free load balancing", for latents that get nothing at all.
    Only what is learned moves, so that training can take it back.
    """
    if model.last_bias is None or not dead.any():
        return
    threshold = getattr(model.activation, "threshold", None) if "threshold" in model.activation.gives else None
    sinks = dead & (threshold > 0) if threshold is not None else torch.zeros_like(dead)
    if sinks.any():
        model.activation.raise_threshold(-LIFT * lr * sinks)
    _lower_bias(model, -LIFT * lr * (dead & ~sinks))


def _lower_bias(model: Autoencoder, amount: Tensor) -> None:
    if model.last_bias is None:
        raise ValueError(
            f"network {model.network.name!r} has no bias b_enc in its encoder, and activation "
            f"{model.activation.name!r} no threshold: nothing can be moved until so many latents fire"
        )
    bias = model.last_bias.data
    bias[: model.latent_shape[0]].sub_(amount.to(bias))
