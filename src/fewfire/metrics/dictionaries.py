"""How alike two dictionaries are: (L, D) rows, of which only the directions count.

Cosines are taken in float32, or in float64 where either dictionary is in it, and a few rows at a time: no function but
``match`` ever holds all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Matches", "best_match", "match", "mcc", "mmcs", "redundancy", "uniqueness"]

COSINES_AT_ONCE = 1 << 24
"""64 MiB in float32, whatever the sizes"""


class Matches(NamedTuple):
    """Pairs of rows, in the order of the rows of ``a``."""

    a: Tensor
    """(K,) int64 row numbers of ``a``"""
    b: Tensor
    """(K,) int64 row numbers of ``b``"""
    cosine: Tensor
    """(K,) their cosines, with their signs"""


def mmcs(a: Tensor, b: Tensor) -> float:
    """Mean over the rows of ``a`` of the largest cosine with a row of ``b``: 1 when all of ``a`` is in ``b``.

    Mean max cosine similarity (Sharkey, Braun & Millidge 2022). Nothing keeps two rows of ``a`` from finding the same
    row of ``b``, so copies are rewarded: read it both ways, ``mmcs(a, b)`` and ``mmcs(b, a)``, and beside ``mcc``.
    Opposite directions count as unlike.

    Raises
    ------
    ValueError
        The rows differ in width, hold NaN or infinity, or there are none.
    """
    return _mean([cosines.amax(1) for _, cosines in _cosines(a, b)])


def redundancy(W_dec: Tensor) -> float:
    """Mean over latents of the largest cosine with another latent's row: ``mmcs`` of a dictionary with itself.

    1 when each has a copy. A row with itself is left out. ``W_dec``: (L, D).

    Raises
    ------
    ValueError
        There are fewer than two rows, or they hold NaN or infinity.
    """
    if len(W_dec) < 2:
        raise ValueError(f"expected at least two rows to compare with each other; got {tuple(W_dec.shape)}")
    largest = []
    for start, cosines in _cosines(W_dec, W_dec):
        i = torch.arange(len(cosines), device=cosines.device)
        cosines[i, start + i] = float("-inf")
        largest.append(cosines.amax(1))
    return _mean(largest)


def match(a: Tensor, b: Tensor) -> Matches:
    """Each row of the smaller dictionary with a row of its own of the other, so that the sum of |cosine| is largest.

    The Hungarian method (Kuhn 1955; scipy's ``linear_sum_assignment``). The dictionaries may differ in size: there are
    as many pairs as the smaller has rows. It needs 8 bytes for every pair of rows: 2 GiB for 16,384 x 16,384.

    Raises
    ------
    ValueError
        The rows differ in width, hold NaN or infinity, or there are none.
    """
    from scipy.optimize import linear_sum_assignment

    if len(a) > len(b):  # the method works on the transpose then, and would make a copy of it
        turned = match(b, a)
        order = turned.b.argsort()
        return Matches(turned.b[order], turned.a[order], turned.cosine[order])
    cost = torch.empty(len(a), len(b), dtype=torch.float64)
    for start, cosines in _cosines(a, b):
        cost[start : start + len(cosines)] = -cosines.abs()  # already negative: maximize=True would copy as well
    rows, columns = (torch.from_numpy(side).long() for side in linear_sum_assignment(cost.numpy()))
    del cost
    cosine = (_directions(a)[rows] * _directions(b)[columns]).sum(1).clamp(-1, 1)
    return Matches(rows, columns, cosine)


def mcc(a: Tensor, b: Tensor) -> float:
    """Mean |cosine| over the pairs of ``match``: 1 when one dictionary is the other, or part of it, in any order.

    Mean correlation coefficient (O'Neill et al. 2024, arXiv 2411.13117), against the true features or between
    two seeds. It is over ``min(len(a), len(b))`` pairs; rows of the larger that are left over do not count.

    Raises
    ------
    ValueError
        The rows differ in width, hold NaN or infinity, or there are none.
    """
    return match(a, b).cosine.abs().mean().item()


def best_match(a: Tensor, b: Tensor) -> Matches:
    """For every row of ``a``, the row of ``b`` with the largest |cosine|; several may have the same.

    Raises
    ------
    ValueError
        The rows differ in width, hold NaN or infinity, or there are none.
    """
    found = []
    for _, cosines in _cosines(a, b):
        places = cosines.abs().argmax(1, keepdim=True)
        found.append((places[:, 0], cosines.gather(1, places)[:, 0]))
    places, values = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return Matches(torch.arange(len(places)), places, values.double())


def uniqueness(learned: Tensor, true: Tensor) -> float:
    """How many true features are the best match of some learned one, divided by the number of learned ones.

    1 when each learned feature has a true one for itself (SynthSAEBench, arXiv 2602.14687). Best by
    |cosine|. Dead latents count as learned.

    Raises
    ------
    ValueError
        The rows differ in width, hold NaN or infinity, or there are none.
    """
    return len(set(best_match(learned, true).b.tolist())) / len(learned)


def _cosines(a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(number of its first row of ``a``, (C, len(b)) cosines), a few rows of ``a`` at a time."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in (*a.shape, *b.shape):
        raise ValueError(f"expected two dictionaries of rows of one width; got {tuple(a.shape)} and {tuple(b.shape)}")
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    a, b = (_directions(rows).to(dtype) for rows in (a, b))
    step = max(1, COSINES_AT_ONCE // len(b))
    for start in range(0, len(a), step):
        yield start, (a[start : start + step] @ b.T).clamp(-1, 1)


def _directions(rows: Tensor) -> Tensor:
    """(L, D) of length 1 in float64; a row of zeros stays one, and has cosine 0 with everything."""
    rows = rows.detach().double()
    largest = rows.abs().amax(1, keepdim=True)
    if not bool(largest.isfinite().all()):
        raise ValueError("expected dictionaries of finite numbers; a row holds NaN or infinity")
    rows = rows / largest.where(largest != 0, 1.0)  # or squares of 1e200 would be infinite
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length != 0, rows / length, 0.0)


def _mean(parts: list[Tensor]) -> float:
    return torch.cat(parts).double().mean().item()
