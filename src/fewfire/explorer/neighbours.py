"""Which features are alike: by the angle of their decoder rows, and by firing together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from fewfire import rng
from fewfire.explorer.smallest import Entries

__all__ = ["N_NEAR", "Near", "by_angle", "by_firing"]

N_NEAR = 10
MOST_EXACT = 20_000
"""features that are all compared with each other; of more, each with those in the cells about its own"""
N_PROBED = 16
"""cells"""
ROUNDS = 8
"""of k-means"""
MOST_PAIRS = 100_000_000
"""of features that fire on the same row, over the rows that are counted"""
FEWEST_TOGETHER = 3
"""rows on which two features must fire together to be called neighbours"""


class Near(NamedTuple):
    """(L, N_NEAR), nearest first; feature -1 where there are fewer."""

    features: npt.NDArray[np.int64]
    likeness: npt.NDArray[np.float32]


def by_angle(vectors: Tensor, n_near: int = N_NEAR) -> Near:
    """The features whose vectors (L, D) have the largest cosine with each one's.

    Up to 20,000 features exactly. More are put into about sqrt(L) cells by k-means, and each is compared with those of
    the cells nearest to its own (inverted file: Jegou et al. 2011, "Product quantization for nearest neighbor search");
    ``benchmarks/explorer.py`` prints the share of true neighbours found.
    """
    n = len(vectors)
    near = np.full((n, n_near), -1, dtype=np.int64), np.zeros((n, n_near), dtype=np.float32)
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    for some, among in _everything(n) if n <= MOST_EXACT else _by_cells(unit):
        cosine = unit[some] @ unit[among].T
        cosine[some[:, None] == among] = -math.inf  # itself
        top = cosine.topk(min(n_near, len(among) - 1), dim=1)
        near[0][some.numpy(), : top.indices.shape[1]] = among[top.indices].numpy()
        near[1][some.numpy(), : top.indices.shape[1]] = top.values.numpy()
    return Near(*near)


def _everything(n: int) -> Iterable[tuple[Tensor, Tensor]]:
    everything = torch.arange(n)
    return ((some, everything) for some in torch.split(everything, max(1, (1 << 23) // n)))


def _by_cells(unit: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Pairs (some features, those to compare them with)."""
    centres = _centres(unit, round(math.sqrt(len(unit))))
    cell = _nearest(unit, centres)
    order = cell.argsort(stable=True)
    members = torch.split(order, torch.bincount(cell, minlength=len(centres)).tolist())
    probed = (centres @ centres.T).topk(min(N_PROBED, len(centres)), dim=1).indices.tolist()
    for c, some in enumerate(members):
        if len(some):
            among = torch.cat([members[other] for other in {c, *probed[c]}])
            yield from ((part, among) for part in torch.split(some, 1024))


def _centres(unit: Tensor, n_cells: int) -> Tensor:
    """Spherical k-means on at most 64 vectors a cell."""
    sample = unit[rng.permutation(len(unit), "cells")[: 64 * n_cells]]
    centres = sample[:n_cells]
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, _nearest(sample, centres), sample)
        centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, torch.nn.functional.normalize(sums, dim=1), centres)
    return centres


def _nearest(unit: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([(part @ centres.T).argmax(1) for part in torch.split(unit, 8192)])


def by_firing(codes: Iterable[Entries], fired: npt.NDArray[np.int64], n_rows: int, n_near: int = N_NEAR) -> Near:
    """The features that most often fire on the same rows: cosine of the two sets of rows, n_ab / sqrt(n_a n_b).

    Parameters
    ----------
    codes
        Entries that fire, rows counted from 0.
    fired
        (L,) how many there are of each feature: where pairs would be too many, every so-many-th row is counted.
    """
    stride = max(1, math.ceil(float(fired.sum()) ** 2 / max(n_rows, 1) / MOST_PAIRS))
    kept = [entries.where(entries.rows % stride == 0) for entries in codes]
    rows, features = (np.concatenate([getattr(part, side) for part in kept]) for side in ("rows", "features"))
    ones = np.ones(len(rows), dtype=np.int32)
    matrix = sp.csr_array((ones, (rows // stride, features)), shape=(n_rows // stride + 1, len(fired)))
    by_feature = matrix.T.tocsr()
    count = np.diff(by_feature.indptr).astype(np.float64)
    near = np.full((len(fired), n_near), -1, dtype=np.int64), np.zeros((len(fired), n_near), dtype=np.float32)
    for first, last in _parts(by_feature, matrix):
        together = (by_feature[first:last] @ matrix).tocoo()
        pair = (together.data >= FEWEST_TOGETHER) & (together.row + first != together.col)
        a, b, n_both = together.row[pair], together.col[pair], together.data[pair]
        likeness = n_both / np.sqrt(count[a + first] * count[b])
        order = np.lexsort((b, -likeness, a))
        a, b, likeness = a[order], b[order], likeness[order]
        starts = np.searchsorted(a, np.arange(last - first))
        place = np.arange(len(a)) - starts[a]
        chosen = place < n_near
        near[0][a[chosen] + first, place[chosen]] = b[chosen]
        near[1][a[chosen] + first, place[chosen]] = likeness[chosen]
    return Near(*near)


def _parts(by_feature: sp.csr_array, matrix: sp.csr_array) -> Iterable[tuple[int, int]]:
    """Spans of features whose products have a few million terms each."""
    per_row = np.diff(matrix.indptr)
    terms = np.concatenate([[0], np.cumsum(per_row[by_feature.indices])])[by_feature.indptr]
    first = 0
    while first < by_feature.shape[0]:
        last = max(first + 1, int(np.searchsorted(terms, terms[first] + 4_000_000, side="right")) - 1)
        yield first, min(last, by_feature.shape[0])
        first = last
