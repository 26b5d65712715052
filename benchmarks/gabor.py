"""How many filters are oriented edges or bars: a Gabor fit per filter.

The model of a filter is a Gabor function, a grating under a Gaussian that may be longer along the stripes than across::

    g(u, v) = exp(-u^2 / 2 a^2 - v^2 / 2 b^2) cos(2 pi f u + phase),     u across the stripes, v along them

with its centre in the patch, f from half a cycle per patch to half a cycle per pixel, and a and b from 0.8 pixels to
the patch's side. A filter counts as an oriented edge or bar when both hold:

1. **The fit explains half of it**: R^2 of the least-squares Gabor is at least 0.5. Means are removed from filter and
   Gabor first: patches have mean 0, so the mean of a filter does nothing that its bias would not do.
2. **It has an orientation**: its response to the best grating of its best orientation is at least twice that to
   any grating across it. Without this a round blob, which a Gabor with a wide grating fits perfectly, would count.

The fit: of some 50,000 Gabors on a grid (16 orientations, 7 frequencies, 49 centres, 9 envelopes), amplitude and phase
solved exactly for each by linear least squares, the best few from different orientations are starts of a bounded
nonlinear least squares over the other six numbers. What chance reaches is in ``controls``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter
from scipy.optimize import least_squares

__all__ = ["GaborFit", "controls", "count_oriented", "fit_gabor", "orientation_ratio"]

Array = npt.NDArray[np.float64]

MIN_R2 = 0.5
MIN_ORIENTATION_RATIO = 2.0
N_STARTS = 6


@dataclass(frozen=True)
class GaborFit:
    """The best Gabor function for one filter."""

    r2: float
    """share of the filter's variance over its pixels that the Gabor explains"""
    orientation_ratio: float
    """of the filter itself: response to the best grating over that to the best grating at right angles"""
    frequency: float
    """cycles per pixel"""

    @property
    def oriented(self) -> bool:
        return self.r2 >= MIN_R2 and self.orientation_ratio >= MIN_ORIENTATION_RATIO


def count_oriented(filters: Array) -> int:
    """(n, side, side) -> how many are oriented edges or bars."""
    return sum(fit_gabor(one).oriented for one in filters)


def fit_gabor(one: Array) -> GaborFit:
    """(side, side) -> the best Gabor."""
    side = len(one)
    target = (one - one.mean()).ravel().astype(np.float64)
    norm = np.linalg.norm(target)
    if norm == 0:
        return GaborFit(0.0, 1.0, 0.0)
    target /= norm
    fits = [
        least_squares(_residual, start, args=(target, side), bounds=_bounds(side), x_scale=_SCALES, max_nfev=60)
        for start in _starts(target, side)
    ]
    best = min(fits, key=lambda fit: fit.cost)
    return GaborFit(1 - 2 * float(best.cost), orientation_ratio(one), float(best.x[3]))


# ---------------------------------------------------------------------------------------------- the fit

# The six numbers: centre x, centre y, orientation of u, frequency, a, b.
_SCALES = (1.0, 1.0, 0.3, 0.05, 1.0, 1.0)


def _bounds(side: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    half = side / 2
    return (-half, -half, -np.inf, 0.5 / side, 0.8, 0.8), (half, half, np.inf, 0.5, side, side)


def _pair(numbers: Array, side: int) -> Array:
    """(..., 6) -> (..., side * side, 2): an orthonormal basis of the Gabors of all amplitudes and phases."""
    x0, y0, theta, f, a, b = (n[..., None] for n in np.moveaxis(np.asarray(numbers), -1, 0))
    axis = np.arange(side) - (side - 1) / 2
    y, x = (grid.ravel() for grid in np.meshgrid(axis, axis, indexing="ij"))
    u = (x - x0) * np.cos(theta) + (y - y0) * np.sin(theta)
    v = (y - y0) * np.cos(theta) - (x - x0) * np.sin(theta)
    wave = np.exp(-((u / a) ** 2) / 2 - (v / b) ** 2 / 2)[..., None] * np.exp(2j * np.pi * f * u)[..., None].view(float)
    wave -= wave.mean(-2, keepdims=True)
    even, odd = wave[..., 0], wave[..., 1]
    even = even / (np.linalg.norm(even, axis=-1, keepdims=True) + 1e-12)
    odd = odd - (odd * even).sum(-1, keepdims=True) * even
    odd = odd / (np.linalg.norm(odd, axis=-1, keepdims=True) + 1e-12)
    return np.stack([even, odd], axis=-1)


def _residual(numbers: Array, target: Array, side: int) -> Array:
    """What the best amplitude and phase leave of the target."""
    basis = _pair(numbers, side)
    return target - basis @ (basis.T @ target)


def _starts(target: Array, side: int) -> Array:
    """(N_STARTS, 6): the best point of the grid at each of the most promising orientations."""
    grid, bases = _grid(side)
    explained = np.square(np.einsum("gpk,p->gk", bases, target)).sum(-1)
    by_orientation: dict[float, int] = {}
    for i in np.argsort(-explained):
        by_orientation.setdefault(float(grid[i, 2]), int(i))
        if len(by_orientation) == N_STARTS:
            break
    return grid[list(by_orientation.values())]


@cache
def _grid(side: int) -> tuple[Array, Array]:
    centres = np.linspace(-side / 2 + 1, side / 2 - 1, 7)
    orientations = np.arange(16) * np.pi / 16
    frequencies = np.linspace(0.6 / side, 0.36, 7)
    widths = np.array([1.0, 1.75, 3.0])
    grid = np.array(list(product(centres, centres, orientations, frequencies, widths, widths)))
    return grid, _pair(grid, side).astype(np.float32)


# ---------------------------------------------------------------------------------------------- orientation


def orientation_ratio(one: Array) -> float:
    """The largest response to a grating, over the largest to a grating whose stripes run across those.

    A response is ``|sum filter * exp(i 2 pi f . x)|``, the best phase included; 36 orientations, 24 frequencies.
    1 for a round blob; large for an edge or a bar.
    """
    side = len(one)
    axis = np.arange(side) - (side - 1) / 2
    theta = np.arange(36) * np.pi / 36
    f = np.linspace(0.5 / side, 0.5, 24)
    across = np.exp(-2j * np.pi * axis[:, None, None] * f * np.cos(theta)[:, None])  # (side, theta, f)
    down = np.exp(-2j * np.pi * axis[:, None, None] * f * np.sin(theta)[:, None])
    response = np.abs(np.einsum("yx,xtf,ytf->tf", one - one.mean(), across, down)).max(1)
    best = int(response.argmax())
    return float(response[best] / (response[(best + 18) % 36] + 1e-30))


# ------------------------------------------------------------------------------------------------ controls


def controls(filters: Array, seed: int = 0) -> dict[str, Array]:
    """Filters of the same number and size that learned nothing, to say what the count means.

    Beside white noise, noise as smooth as an edge filter and round blobs, at random centres, which must not count.
    """
    n, side, _ = filters.shape
    random = np.random.default_rng(seed)
    white = random.standard_normal((n, side, side))
    smooth = np.stack([gaussian_filter(one, 0.7, mode="wrap") for one in random.standard_normal((n, side, side))])
    shuffled = np.stack([random.permutation(one.ravel()).reshape(side, side) for one in filters])
    axis = np.arange(side) - (side - 1) / 2
    centres = random.uniform(-1.5, 1.5, (n, 2, 1, 1))
    squares = (axis[:, None] - centres[:, 0]) ** 2 + (axis[None, :] - centres[:, 1]) ** 2
    widths = random.uniform(0.8, 2.0, (n, 1, 1))
    return {
        "white Gaussian noise": white,
        "learned filters, pixels shuffled": shuffled,
        "smoothed Gaussian noise (0.7 pixels)": smooth,
        "round blobs": np.exp(-squares / 2 / widths**2),
    }
