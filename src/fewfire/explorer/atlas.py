"""A plane on which features lie near those that point the same way."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import rng
from fewfire.explorer.neighbours import Near

__all__ = ["lay_out"]

ROUNDS = 150
PULLED = 6
"""neighbours, the nearest, that pull each feature"""
REPELLED = 6
"""others, drawn at random, that push each feature away in each round"""
FAR = 4.0
"""no push or pull is stronger"""


@torch.no_grad()
def lay_out(vectors: Tensor, near: Near, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """(L, D) vectors and their neighbours -> (L, 2) places from -1 to 1; the same for the same arguments.

    Starts from the two main axes. Then, in ``ROUNDS`` rounds, every feature is pulled to its neighbours and pushed from
    a few others with the forces of UMAP (McInnes et al. 2018, equation 17, with a = b = 1), all features at once: a
    round is a few gathers and sums over (L, PULLED), so that 100,000 features take seconds.
    """
    n = len(vectors)
    if n < 3:
        return np.zeros((n, 2), dtype=np.float32)
    places = _main_axes(vectors, seed)
    source, target, weight = _edges(near, n)
    degree = torch.bincount(source, weights=weight, minlength=n).clamp_min(1e-6)[:, None]
    generator = rng.generator(seed, "atlas")
    for i in range(ROUNDS):
        step = places[target] - places[source]
        pull = step * (weight / (1 + step.square().sum(1)))[:, None]
        pulled = torch.zeros_like(places).index_add_(0, source, pull) / degree
        others = torch.randint(0, n, (n, REPELLED), generator=generator)
        apart = places[:, None] - places[others]
        square = apart.square().sum(2, keepdim=True)
        push = apart / ((0.01 + square) * (1 + square))
        pushed = push.clamp_(-FAR, FAR).mean(1)
        places += (1 - i / ROUNDS) * (2 * pulled + 0.5 * pushed).clamp_(-FAR, FAR)
    return _within(places)


def _main_axes(vectors: Tensor, seed: int) -> Tensor:
    """(L, 2) in the plane of the largest variance, spread to about 10, and moved apart a little where they coincide."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    centred = unit - unit.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -2:]
    axes = axes * torch.where(axes.abs().max(0).values == axes.max(0).values, 1.0, -1.0)  # a sign that does not hang on
    flat = centred @ axes if axes.shape[1] == 2 else torch.cat([centred, torch.zeros_like(centred)], 1)[:, :2]
    flat = flat / flat.std(0).clamp_min(1e-12) * 4
    noise = torch.rand(flat.shape, generator=rng.generator(seed, "atlas", "start"))
    return (flat + 1e-3 * noise).float()


def _edges(near: Near, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Source, target and weight of every pair of neighbours, in both directions."""
    nearest, likeness = (torch.from_numpy(side)[:, :PULLED] for side in near)
    source = torch.arange(n).repeat_interleave(nearest.shape[1])
    target, likeness = nearest.flatten(), likeness.flatten()
    known = (target >= 0) & (likeness > 0)
    source, target, weight = source[known], target[known], likeness[known]
    return torch.cat([source, target]), torch.cat([target, source]), torch.cat([weight, weight])


def _within(places: Tensor) -> npt.NDArray[np.float32]:
    """Scaled so that nearly all lie from -1 to 1; the few beyond are put onto the border."""
    middle = places.median(0).values
    centred = places - middle
    far = centred.abs().amax(1).kthvalue(max(1, math.ceil(0.995 * len(places)))).values
    scaled: npt.NDArray[np.float32] = (centred / far.clamp_min(1e-12)).clamp(-1, 1).float().numpy()
    return scaled
