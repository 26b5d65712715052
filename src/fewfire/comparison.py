"""Whether two models found the same features. Formulas: docs/metrics.md."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder, HasModel, as_model

__all__ = ["MEANINGS", "stability"]

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
    for model in (a, b):
        if "linear_decoder" not in model.gives:
            raise ValueError(
                f"expected two models with a linear decoder, whose rows are the features; got one with network "
                f"{model.network.name!r} and output {model.network.output!r}"
            )
    if a.target_shape != b.target_shape:
        raise ValueError(
            f"expected two models of the same rows; one reconstructs rows of shape {a.target_shape}, the other of "
            f"{b.target_shape}"
        )
    rows_a, rows_b = (cast(Tensor, model.decoder.W_dec).detach().cpu() for model in (a, b))
    cosine = metrics.match(rows_a, rows_b).cosine.abs()
    return {
        "n_pairs": len(cosine),
        "mcc": cosine.mean().item(),
        "mmcs": metrics.mmcs(rows_a, rows_b),
        "mmcs_back": metrics.mmcs(rows_b, rows_a),
        "above_0.7": (cosine > 0.7).double().mean().item(),
        "above_0.9": (cosine > 0.9).double().mean().item(),
    }
