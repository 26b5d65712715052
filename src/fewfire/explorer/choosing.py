"""Which rows stand for a feature: its strongest, some at each of its quantiles, and near misses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.explorer.scan import N_TOP, Scan, batches

__all__ = ["GROUPS", "Examples", "choose"]

QUANTILES = (0.9, 0.75, 0.5, 0.25, 0.1)
EACH = 2
"""examples of a quantile"""
N_MISSES = 3
MOST_CANDIDATES = 2048
"""rows among which near misses are looked for, spread evenly over the data"""
PRE_ACTS_AT_ONCE = 1 << 24
GROUPS = [("top", N_TOP), *((f"q{round(100 * q)}", EACH) for q in QUANTILES), ("miss", N_MISSES)]
"""what the columns of ``Examples`` are, in order"""


class Examples(NamedTuple):
    """(L, sum of GROUPS)."""

    rows: npt.NDArray[np.int64]
    """-1 where there are fewer"""
    values: npt.NDArray[np.float32]
    """activations; of near misses, by how much they miss or are below those that fire"""


def choose(model: Autoencoder, source: Source, found: Scan) -> Examples:
    """Examples of every feature. A row stands in one group of a feature only, the first that it fits."""
    at_quantiles = _at_quantiles(*found.sampled, found.top[0])
    misses = _near_misses(model, source, found.n_rows)
    parts = (found.top, at_quantiles, misses)
    rows, values = np.concatenate([part[0] for part in parts], 1), np.concatenate([part[1] for part in parts], 1)
    return Examples(rows, values)


def _at_quantiles(
    rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32], top: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(L, S) a random sample of each feature's activations -> (L, len(QUANTILES) * EACH)."""
    order = np.argsort(np.where(rows < 0, np.inf, -values), axis=1, kind="stable")
    rows, values = np.take_along_axis(rows, order, 1), np.take_along_axis(values, order, 1)
    n = (rows >= 0).sum(1, keepdims=True)
    at = np.concatenate([np.round((1 - q) * (n - EACH)).astype(np.int64) + np.arange(EACH) for q in QUANTILES], axis=1)
    at = np.clip(at, 0, rows.shape[1] - 1)
    chosen, strength = np.take_along_axis(rows, at, 1), np.take_along_axis(values, at, 1)
    for column in range(chosen.shape[1]):  # a row that is shown already is not shown again
        before = np.concatenate([top, chosen[:, :column]], axis=1)
        again = (chosen[:, column : column + 1] == before).any(1)
        chosen[again, column] = -1
    return chosen, strength


@torch.no_grad()
def _near_misses(
    model: Autoencoder, source: Source, n_rows: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """(L, N_MISSES) of some rows, those on which a feature is silent and its pre-activation highest."""
    n_features = model.latent_shape[0]
    best = torch.full((n_features, N_MISSES), -torch.inf)
    where = torch.full((n_features, N_MISSES), -1, dtype=torch.int64)
    stride = -(-n_rows // MOST_CANDIDATES)
    step = max(8, PRE_ACTS_AT_ONCE // int(np.prod(model.latent_shape)))
    for first, batch in batches(model, source, n_rows):
        numbers = torch.arange(-first % stride, len(batch.rows), stride)
        for some in torch.split(numbers, step):
            height = _silent_heights(model, batch.x_in[some]) if len(some) else None
            if height is None:
                continue
            both = torch.cat([best, height.T], dim=1)
            best, chosen = both.topk(N_MISSES, dim=1)
            here = (some + first).expand(n_features, -1)
            where = torch.cat([where, here], dim=1).gather(1, chosen)
    where[~torch.isfinite(best)] = -1
    return where.numpy(), torch.where(torch.isfinite(best), best, 0.0).numpy()


def _silent_heights(model: Autoencoder, x: Tensor) -> Tensor | None:
    """(n, L) how near to firing each feature is, -inf where it fires; None where nothing says so."""
    pre_acts, latents = model.codes(model.to_model_space(x.to(model.device)).to(model.dtype))
    margins = model.activation.margins(pre_acts)
    height = pre_acts if margins is None else margins
    if height.shape != latents.shape or "mean_logvar" in model.gives:
        return None
    silent = height.masked_fill(model.activation.active(latents), -torch.inf)
    if silent.ndim > 2:  # a feature map is silent where all of it is
        fires = model.activation.active(latents).flatten(2).any(2)
        silent = silent.flatten(2).amax(2).masked_fill(fires, -torch.inf)
    return silent.float().cpu()
