"""What the page shows of the data: two passes over the first rows, in memory that does not grow with them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Source
from fewfire.evaluation import Evaluation, Kind, kind_of

__all__ = ["Example", "Gathered", "Kind", "gather", "kind_of"]

MAX_ROWS = 5_000
MAX_LATENTS_AT_ONCE = 1 << 22
"""latents of a batch: 16 MiB in float32, whatever the model's size"""
N_TOP = 8
N_FEATURES_WITH_EXAMPLES = 12
N_PAIRS = 12


@dataclass(frozen=True)
class Example:
    """A row to show, in data space."""

    row: int
    """its number in the source"""
    x: Tensor
    """(D,) the input, flat"""
    target: Tensor
    """(D_out,) what was to be reconstructed, flat"""
    recon: Tensor
    """(D_out,) what came out, flat"""
    n_firing: int
    peaks: Tensor
    """(L,) the place at which each feature map is highest, counted along its rows; 0 where latents are a vector"""


@dataclass(frozen=True)
class Gathered:
    """What two passes over the rows found."""

    evaluation: Evaluation
    spread: Tensor
    """(L,) standard deviation of each latent over the rows; of a feature map, of its highest place"""
    order: Tensor
    """(L,) feature numbers, the most used first"""
    top: dict[int, list[tuple[float, int]]]
    """feature -> (activation, position) of the rows that excite it most; for the first features of ``order``"""
    pairs: list[int]
    """positions of the rows whose reconstructions are shown"""
    examples: dict[int, Example]
    """position -> row, for every position named above"""


def gather(model: Autoencoder, source: Source) -> Gathered:
    """Read the first rows of a source, in its order.

    Raises
    ------
    ValueError
        The source gave no rows.
    """
    model.layout.check_columns(source.layout.columns)
    evaluation = Evaluation(model)
    n_latents = model.latent_shape[0]
    best = torch.full((n_latents, N_TOP), -math.inf)
    where = torch.zeros((n_latents, N_TOP), dtype=torch.int64)
    moments = metrics.Moments()
    for position, batch in _first_rows(model, source):
        evaluation.update(batch.x_in, batch.x)
        height = _height(model.encode(batch.x_in))
        moments.update(height)
        here = torch.arange(position, position + len(height)).expand(n_latents, -1)
        best, chosen = torch.cat([best, height.T.float()], dim=1).topk(N_TOP, dim=1)
        where = torch.cat([where, here], dim=1).gather(1, chosen)
    if evaluation.n_rows == 0:
        raise ValueError("expected rows to report on; the data gave none")
    spread = moments.variance.sqrt()
    order = _by_use(evaluation.density, spread if kind_of(model) == "normal" else evaluation.largest)
    top = {j: _firing(best[j], where[j]) for j in order[:N_FEATURES_WITH_EXAMPLES].tolist()}
    pairs = sorted({round(i) for i in torch.linspace(0, evaluation.n_rows - 1, N_PAIRS).tolist()})
    wanted = {*pairs, *(position for rows in top.values() for _, position in rows)}
    return Gathered(evaluation, spread, order, top, pairs, _fetch(model, source, wanted))


def _first_rows(model: Autoencoder, source: Source) -> Iterator[tuple[int, Batch]]:
    """(position of its first row, batch), up to MAX_ROWS; the same each time it is asked."""
    size = max(16, min(512, MAX_LATENTS_AT_ONCE // math.prod(model.latent_shape)))
    position = 0
    for batch in source.batches(size, shuffle=False):
        batch = Batch(*(part[: MAX_ROWS - position] for part in (batch.x_in, batch.x, batch.rows)))
        yield position, batch
        position += len(batch.rows)
        if position >= MAX_ROWS:
            return


def _height(latents: Tensor) -> Tensor:
    """(B, L, ...) -> (B, L) on the CPU: a feature map is as high as its highest place."""
    return (latents.flatten(2).amax(2) if latents.ndim > 2 else latents).cpu()


def _by_use(density: Tensor, otherwise: Tensor) -> Tensor:
    """Feature numbers by firing rate, then by what ranks those that fire equally often: all, or logistic below 1/2."""
    by_other = otherwise.argsort(descending=True, stable=True)
    return by_other[density[by_other].argsort(descending=True, stable=True)]


def _firing(values: Tensor, positions: Tensor) -> list[tuple[float, int]]:
    """The rows of a running top that were filled and on which the latent was not silent."""
    pairs = zip(values.tolist(), positions.tolist(), strict=True)
    return [(value, position) for value, position in pairs if math.isfinite(value) and value != 0]


def _fetch(model: Autoencoder, source: Source, wanted: set[int]) -> dict[int, Example]:
    """A second pass that keeps the wanted rows alone, and stops after the last."""
    examples = {}
    for first, batch in _first_rows(model, source):
        inside = [p - first for p in sorted(wanted) if first <= p < first + len(batch.rows)]
        if inside:
            x_in, x = batch.x_in[inside], batch.x[inside]
            latents = model.encode(x_in)
            recon = model.decode(latents, like=x_in if x_in.shape == x.shape else None)
            firing = model.activation.active(latents).flatten(1).sum(1)
            peaks = latents.flatten(2).argmax(2) if latents.ndim > 2 else torch.zeros_like(latents, dtype=torch.int64)
            for i, place in enumerate(inside):
                row, n_firing = int(batch.rows[place]), int(firing[i])
                shown = [part[i].flatten().double().cpu() for part in (x_in, x, recon)]
                examples[first + place] = Example(row, shown[0], shown[1], shown[2], n_firing, peaks[i].cpu())
        if first + len(batch.rows) > max(wanted):
            break
    return examples
