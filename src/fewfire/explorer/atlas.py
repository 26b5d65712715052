"""A plane on which features lie near those that point the same way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import rng
from fewfire.explorer.neighbours import Near

__all__ = ["lay_out"]

ROUNDS, ROUNDS_OF_MANY = 300, 60
MANY = 20_000
"""features"""
REPELLED = 8
"""others, drawn at random, that push each feature away in each round"""
PUSH = 7.0
"""how much stronger a push is than UMAP's: of those tried, it keeps neighbours of the vectors nearest to each other"""
START = 10.0
"""about the standard deviation of the places before the first round"""
GUESSED, ITERATIONS = 8, 12
"""axes among which the two main ones are found, and how often they are improved"""
FAR = 4.0
"""no push or pull is stronger"""


@torch.no_grad()
def lay_out(vectors: Tensor, near: Near, *, seed: int = 0) -> npt.NDArray[np.float32]:
    """(L, D) vectors and their neighbours -> (L, 2) places from -1 to 1; the same for the same arguments.

    Starts from the ranks along the two main axes. Then, in a few hundred rounds, every feature is pulled to its
    neighbours and pushed from some others with the forces of UMAP (McInnes et al. 2018, with a = b = 1), all features
    at once: a round is a few gathers and sums over (L, N_NEAR), so that 100,000 features take seconds.
    """
    n = len(vectors)
    if n < 3:
        return np.zeros((n, 2), dtype=np.float32)
    places = _main_axes(vectors, seed)
    source, target = _edges(near, n)
    degree = torch.bincount(source, minlength=n).clamp_min(1)[:, None]
    generator = rng.generator(seed, "atlas")
    rounds = ROUNDS if n <= MANY else ROUNDS_OF_MANY
    for i in range(rounds):
        step = places[target] - places[source]
        pull = step / (1 + step.square().sum(1, keepdim=True))
        pulled = torch.zeros_like(places).index_add_(0, source, pull) / degree
        others = torch.randint(0, n, (n, REPELLED), generator=generator)
        apart = places[:, None] - places[others]
        square = apart.square().sum(2, keepdim=True)
        push = apart / ((0.01 + square) * (1 + square))
        pushed = push.clamp_(-FAR, FAR).mean(1)
        places += (1 - i / rounds) * (2 * pulled + PUSH * pushed).clamp_(-FAR, FAR)
    return _within(places)


def _main_axes(vectors: Tensor, seed: int) -> Tensor:
    """(L, 2) in the plane of about the largest variance, and moved apart a little where they coincide.

    Subspace iteration (Halko et al. 2011, algorithm 4.4): no matrix of all columns by all columns is made.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=1)
    centred = unit - unit.mean(0)
    generator = rng.generator(seed, "atlas", "start")
    axes = torch.randn(centred.shape[1], min(GUESSED, *centred.shape), generator=generator)
    for _ in range(ITERATIONS):
        axes = torch.linalg.qr(centred.T @ (centred @ axes)).Q
    flat = torch.zeros(len(unit), 2)
    scores = centred @ axes
    rotation = torch.linalg.eigh(scores.T @ scores).eigenvectors.flip(1)[:, :2]
    flat[:, : rotation.shape[1]] = scores @ rotation
    flat = flat + 1e-6 * torch.rand(flat.shape, generator=generator)
    ranks = flat.argsort(0).argsort(0).float() / len(flat) - 0.5  # even: no few features lie far from all others
    return 3 * START * ranks


def _edges(near: Near, n: int) -> tuple[Tensor, Tensor]:
    """Source and target of every pair of neighbours, in both directions."""
    source = torch.arange(n).repeat_interleave(near.features.shape[1])
    target, likeness = (torch.from_numpy(side).flatten() for side in near)
    known = (target >= 0) & (likeness > 0)
    return torch.cat([source[known], target[known]]), torch.cat([target[known], source[known]])


def _within(places: Tensor) -> npt.NDArray[np.float32]:
    """Scaled so that nearly all lie from -1 to 1; the few beyond are put onto the border."""
    ends = torch.quantile(places[:: -(-len(places) // MANY)], torch.tensor([0.005, 0.995]), dim=0)
    half = (ends[1] - ends[0]).max().clamp_min(1e-12) / 2
    scaled: npt.NDArray[np.float32] = ((places - ends.mean(0)) / half).clamp(-1, 1).float().numpy()
    return scaled
