"""Whether two models found the same features, and in which views a crosscoder's are. Formulas: docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder, HasModel, as_model

__all__ = ["MEANINGS", "ViewShares", "stability", "view_shares"]

MEANINGS = {
    "n_pairs": "features of the smaller model, each beside one of its own of the other",
    "mcc": "mean |cosine| of the pairs: 1 the same features, in any order",
    "mmcs": "mean over its features of the largest cosine with one of the other",
    "mmcs_back": "the same from the other's features: lower where that one has features of its own",
    "above_0.7": "share of the pairs whose |cosine| is above 0.7",
    "above_0.9": "share of the pairs whose |cosine| is above 0.9: found by both",
}
"""What each number of ``stability`` means, in a line."""


def stability(model_a: Autoencoder | HasModel, model_b: Autoencoder | HasModel) -> dict[str, float]:
    """How alike the features of two models are, such as those of two seeds: directions of their decoders' rows.

    Each feature of the smaller model is paired with one of the other (``metrics.match``; Song et al. 2025 on the
    consistency of features). The directions are those of the model space: give models with the same preprocessing.

    Parameters
    ----------
    model_a, model_b
        Autoencoders with linear decoders, or fitted estimators. They may differ in their numbers of latents.

    Returns
    -------
    dict
        ``n_pairs, mcc, mmcs, mmcs_back, above_0.7, above_0.9``.

    Raises
    ------
    ValueError
        A decoder is not linear, or the two reconstruct rows of different widths.
    """
    a, b = as_model(model_a), as_model(model_b)
    rows_a, rows_b = _features(a), _features(b)
    if a.target_shape != b.target_shape:
        raise ValueError(
            f"expected two models of the same rows; one reconstructs rows of shape {a.target_shape}, the other of "
            f"{b.target_shape}"
        )
    cosine = metrics.match(rows_a, rows_b).cosine.abs()
    return {
        "n_pairs": len(cosine),
        "mcc": cosine.mean().item(),
        "mmcs": metrics.mmcs(rows_a, rows_b),
        "mmcs_back": metrics.mmcs(rows_b, rows_a),
        "above_0.7": (cosine > 0.7).double().mean().item(),
        "above_0.9": (cosine > 0.9).double().mean().item(),
    }


class ViewShares(NamedTuple):
    """How strongly each latent of a crosscoder writes each view."""

    norms: Tensor
    """(L, V) norm of the latent's decoder row in the view, in model space"""
    shares: Tensor
    """(L, V) the same as shares of their sum over the views: 1 / V where a latent is as strong in all, 1 where it is in
    one alone, NaN where it writes nothing"""


def view_shares(model: Autoencoder | HasModel, views: Sequence[tuple[str, slice] | slice] | None = None) -> ViewShares:
    """In which views each latent of a crosscoder is: shared by all, or private to some (Lindsey et al. 2024).

    Norms are those of the model space, in which each column, and with it each view, has the same spread after
    ``standardize``; without preprocessing, a view of larger numbers has larger shares.

    Parameters
    ----------
    model
        An autoencoder with a linear decoder, or a fitted estimator.
    views
        ``Views.views`` of its data: which columns of a target, laid flat, each view is. None: the lines of targets
        (V, D).

    Raises
    ------
    ValueError
        The decoder is not linear; or targets are not (V, D) and nobody says which columns the views are, or says so of
        columns that are not there.
    """
    model = as_model(model)
    rows, width = _features(model), math.prod(model.target_shape)
    if views is None and len(model.target_shape) != 2:
        raise ValueError(
            f"expected targets of shape (views, columns), got {model.target_shape}; say which columns each view is: "
            "views=source.views"
        )
    if views is None:
        count, each = model.target_shape
        spans = [slice(i * each, (i + 1) * each) for i in range(count)]
    else:
        spans = [view if isinstance(view, slice) else view[1] for view in views]
    if not spans or not all(0 <= span.start < span.stop <= width for span in spans):
        raise ValueError(f"expected views, each a slice of the {width} columns of a target; got {views!r:.100}")
    norms = torch.stack([rows[:, span].norm(dim=1) for span in spans], dim=1)
    return ViewShares(norms, norms / norms.sum(1, keepdim=True))


def _features(model: Autoencoder) -> Tensor:
    """(L, D) the decoder's rows."""
    if "linear_decoder" not in model.gives:
        raise ValueError(
            f"expected a model with a linear decoder, whose rows are the features; got one with network "
            f"{model.network.name!r} and output {model.network.output!r}"
        )
    return cast(Tensor, model.decoder.W_dec).detach().cpu()
