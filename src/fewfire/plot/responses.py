"""What is drawn of a feature: what it writes, or what a unit of the first layer looks for."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Layout

__all__ = ["Drawn", "Weights", "drawn", "feature_vectors"]

Weights: TypeAlias = Literal["decoder", "encoder"]

AT_ONCE = 64
"""latents whose responses are decoded together"""
FAR = 1000.0
"""An activation beside which the biases of the hidden layers are nothing: latents without an upper end are drawn so.
At 1 a deep decoder may answer with little but noise, where its activations are usually 10."""
FAINT = 0.02
"""of a feature's largest value: where every feature is fainter, a picture of feature maps is cut off"""


class Drawn(NamedTuple):
    """Vectors, and how a person sees one."""

    vectors: Tensor
    """(N, W) float32 on the CPU"""
    layout: Layout


def drawn(model: Autoencoder | HasModel, weights: Weights = "decoder") -> Drawn:
    """``feature_vectors``, with the layout that they are drawn in: of feature maps, the patch that they write.

    Raises
    ------
    ValueError
        As ``feature_vectors``.
    """
    model = as_model(model)
    vectors = feature_vectors(model, weights)
    if weights == "encoder":
        return Drawn(vectors, _layout_of(_first_layer(model), model))
    is_row = model.layout.kind == "image" and vectors.shape[1] == math.prod(model.layout.shape)
    return _cropped(vectors, model.layout) if is_row and len(model.latent_shape) > 1 else Drawn(vectors, model.layout)


def feature_vectors(model: Autoencoder | HasModel, weights: Weights = "decoder") -> Tensor:
    """(N, D) in model space.

    ``weights`` "decoder": what each of the L features adds to a reconstruction, for an activation of 1: row j of W_dec.
    Where the decoder is not linear, what is added to the reconstruction of no feature at all when one feature fires,
    and fires strongly, divided by its activation; a feature map fires at its middle place. "encoder": what each unit of
    the first layer looks for, at norm 1; a unit is a feature where there is but one layer.

    Raises
    ------
    ValueError
        The network has no weights of that kind.
    """
    model = as_model(model)
    if weights not in ("decoder", "encoder"):
        raise ValueError(f"expected weights 'decoder' or 'encoder'; got {weights!r}")
    if weights == "encoder":
        matrix = _first_layer(model).W_enc
        if "linear_encoder" in model.gives:
            matrix = matrix[: model.n_latents]  # the means of normal latents; their variances come after
        vectors: Tensor = matrix.detach().float().cpu()
        unit: Tensor = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return unit
    rows = getattr(model.decoder, "W_dec", None)
    if isinstance(rows, Tensor) and len(rows) == model.n_latents:
        return rows.detach().float().cpu().flatten(1)
    return _responses(model).flatten(1)


@torch.no_grad()
def _responses(model: Autoencoder) -> Tensor:
    """(L, *target shape): decoder(one latent) - decoder(none), per unit of activation."""
    n_latents, *grid = model.latent_shape
    height = FAR if model.activation.exact_zeros else 1.0  # a logistic unit ends at 1, a normal one seldom gets further
    n_places = math.prod(grid)
    middle = sum(n // 2 * math.prod(grid[side + 1 :]) for side, n in enumerate(grid))
    some = torch.zeros(AT_ONCE, n_latents, n_places, dtype=model.dtype, device=model.device)
    nothing = model.decoder(some[:1].view(1, *model.latent_shape))
    parts = []
    for first in range(0, n_latents, AT_ONCE):
        latents = some.narrow(0, 0, min(AT_ONCE, n_latents - first)).zero_()
        latents[:, first:, middle].fill_diagonal_(height)
        parts.append((model.decoder(latents.view(-1, *model.latent_shape)) - nothing).float().cpu() / height)
    return torch.cat(parts)


def _first_layer(model: Autoencoder) -> Any:
    layer = next((m for m in model.encoder.modules() if isinstance(getattr(m, "W_enc", None), Tensor)), None)
    if layer is None:
        raise ValueError(
            f"network {model.network.name!r} has no encoder weights W_enc to draw; draw weights='decoder', or rows "
            "that make a feature fire"
        )
    return layer


def _layout_of(layer: Any, model: Autoencoder) -> Layout:
    """Of what the first layer reads: a row, or a convolution's window."""
    shape = tuple(layer.input_shape)
    if math.prod(shape) == math.prod(model.input_shape):
        return model.layout
    return Layout("series" if len(shape) == 2 else "image", shape)


def _cropped(vectors: Tensor, layout: Layout) -> Drawn:
    """Pictures (N, h * w) cut down to where any of them has something to show."""
    pictures = vectors.reshape(len(vectors), *layout.shape)
    seen = pictures.abs().flatten(1)
    bright = (seen > FAINT * seen.amax(1, keepdim=True)).any(0).view(-1, *layout.shape[-2:]).any(0)
    for side in (-2, -1):
        where = bright.any(-1 if side == -2 else -2).nonzero().flatten().tolist()
        if where:
            pictures = pictures.narrow(side, where[0], where[-1] - where[0] + 1)
    return Drawn(pictures.flatten(1), Layout("image", tuple(pictures.shape[1:])))
