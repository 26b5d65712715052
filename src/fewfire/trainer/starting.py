"""Where training starts from: what a first look at the data is enough to know."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.calibration import raise_threshold
from fewfire.networks import LinearDecoder, LinearEncoder
from fewfire.terms import KLSparsity, Term

__all__ = ["geometric_median", "start_activation", "start_dictionary", "start_sparse"]


@torch.no_grad()
def start_sparse(model: Autoencoder, terms: Iterable[Term]) -> None:
    """Let logistic units of a model not yet trained start at the mean activation that KL asks for.

    A bias moves by the learning rate a step, and from one half to 0.05 it is 3 / 0.001 steps: as many as there are by
    default, in which the penalty pulls at all units alike and they learn nothing else.
    """
    bias = model.last_bias
    for term in terms:
        if isinstance(term, KLSparsity) and bias is not None:
            bias[: model.n_latents].fill_(math.log(term.rho / (1 - term.rho)))


@torch.no_grad()
def start_dictionary(model: Autoencoder, rows: Tensor, targets: Tensor) -> None:
    """Let a dictionary not yet trained write the geometric median of the targets (B, *target shape) by itself.

    And read rows (B, *input shape) less theirs. Latents then say how a row differs from the middle, instead of all
    saying where the middle is (Bricken et al. 2023, "Towards monosemanticity"). Both are in model space.
    """
    encoder, decoder = model.encoder, model.decoder
    if type(encoder) is not LinearEncoder or not isinstance(decoder, LinearDecoder) or not decoder.unit_norm:
        return
    if decoder.b_dec.any() or encoder.b_enc.any() or model.network.output != "identity":
        return
    written, read = geometric_median(targets.flatten(1)), geometric_median(rows.flatten(1))
    if written.isfinite().all() and (encoder.W_enc @ read).isfinite().all():  # else the first step says what is wrong
        decoder.b_dec.copy_(written)
        encoder.centre(read)


def geometric_median(rows: Tensor, rounds: int = 100) -> Tensor:
    """The point with the least sum of distances to the rows: (B, D) -> (D,). Outliers hardly move it.

    Weiszfeld 1937: the mean, weighed by the inverse of each row's distance to the last answer; the first answer is the
    median of each column.
    """
    x = rows.double()  # whose squares do not overflow
    median = x.median(0).values
    near = 1e-6 * (x - median).norm(dim=1).median()
    if not (near.isfinite() and near > 0):  # most rows alike, or beyond all bounds
        return median.to(rows.dtype)
    for _ in range(rounds):
        weight = 1 / (x - median).norm(dim=1).clamp_min(near)
        before, median = median, (weight @ x) / weight.sum()
        if (median - before).norm() <= near:
            break
    return median.to(rows.dtype)


@torch.no_grad()
def start_activation(model: Autoencoder, terms: Iterable[Term], rows: Tensor, target_l0: float | None) -> None:
    """Thresholds from rows (B, *input shape) in model space; with a target, so that as many latents fire as shall."""
    if target_l0 is not None:
        start_sparse(model, terms)
    elif type(model.activation).start is Activation.start:
        return
    pre_acts = model.encoder(rows).to(model.dtype)
    model.activation.start(pre_acts, target_l0)
    margins = model.activation.margins(pre_acts)
    if target_l0 is not None and margins is not None:
        raise_threshold(model, _start_for(model, margins, target_l0))


def _start_for(model: Autoencoder, margins: Tensor, target_l0: float) -> Tensor:
    """By how much to raise thresholds for ``target_l0`` latents to fire per row: a number, or one for each bias (L,).

    Thresholds of their own start as one for all: latents then find more of the truth (benchmarks/worlds.py). Where
    biases are the thresholds, latents with small weights would never fire; each starts with its share of the rows.
    """
    alike = type(model.activation).raise_threshold is Activation.raise_threshold
    groups = margins.transpose(0, 1).flatten(1) if alike else margins.flatten()[None]  # of a map, every place counts
    size = groups.shape[1]
    rank = min(max(1, round((1 - target_l0 / margins[0].numel()) * size)), size)
    lowest = groups.kthvalue(rank, dim=1).values
    lowest = lowest.where(lowest.isfinite(), 0.0)
    return lowest if alike else lowest.squeeze(0)
