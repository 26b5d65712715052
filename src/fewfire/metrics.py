"""Pure functions of tensors, and the running moments that let them stream.

Sums are taken in float64, whatever comes in: in float32 the variance of a column with mean 10,000 and spread 1 is 0.
Formulas and meanings: docs/metrics.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "Moments",
    "by_latent",
    "dead_fraction",
    "density",
    "explained_variance",
    "fvu",
    "l0",
    "mean_activation",
    "mse",
    "psnr",
    "ssim",
    "unexplained",
]


def mse(x: Tensor, recon: Tensor) -> float:
    """Mean squared error over every row and column."""
    _same_shape(x, recon)
    return (recon.double() - x.double()).square().mean().item()


def fvu(x: Tensor, recon: Tensor) -> float:
    """Fraction of variance unexplained: squared error over squared distance from the mean of the whole set.

    0 is perfect; predicting the mean of every column gives exactly 1.
    """
    _same_shape(x, recon)
    moments = Moments.of(x)
    return unexplained((recon.double() - x.double()).square().sum().item(), moments.squared_deviation)


def explained_variance(x: Tensor, recon: Tensor) -> float:
    """1 - FVU: 1 is perfect, predicting the mean of every column gives 0, worse than that is negative."""
    return 1.0 - fvu(x, recon)


def unexplained(squared_error: float, squared_deviation: float) -> float:
    """FVU from its two sums. Data without variance: 0 when reproduced exactly, else 1 (as scikit-learn's r2_score)."""
    if squared_deviation != 0:  # NaN among them, which must come out as NaN
        return squared_error / squared_deviation
    return 0.0 if squared_error == 0 else 1.0


def psnr(x: Tensor, recon: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(data_range^2 / mse)`` of each row, averaged over rows.

    A row reproduced exactly has no noise and is infinite.
    """
    _same_shape(x, recon)
    error = (recon.double() - x.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(data_range**2 / error)).mean().item()


def ssim(x: Tensor, recon: Tensor, data_range: float = 1.0) -> float:
    """Structural similarity of images (B, h, w) or (B, channels, h, w), averaged over places, channels and rows.

    Wang, Bovik, Sheikh & Simoncelli 2004: a Gaussian window of 11 x 11 with a deviation of 1.5, K1 = 0.01, K2 = 0.03.
    Only places where the whole window lies inside the image count. 1 is perfect.

    Raises
    ------
    ValueError
        The images are smaller than the window.
    """
    _same_shape(x, recon)
    if x.ndim not in (3, 4) or min(x.shape[-2:]) < _WINDOW:
        raise ValueError(f"ssim needs images of at least {_WINDOW} x {_WINDOW}, (B, h, w) or (B, channels, h, w); "
                         f"got {tuple(x.shape)}")  # fmt: skip
    a, b = (t.double().reshape(-1, 1, *t.shape[-2:]) for t in (x, recon))
    place = torch.arange(_WINDOW, dtype=torch.float64, device=a.device) - _WINDOW // 2
    bell = torch.exp(-place.square() / (2 * 1.5**2))
    window = torch.outer(bell, bell)[None, None] / bell.sum() ** 2

    def local(t: Tensor) -> Tensor:
        return F.conv2d(t, window)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean().item()


_WINDOW = 11


def l0(active: Tensor) -> float:
    """Mean number of latents that fire per row. ``active``: (B, L, ...) bool."""
    _are_bool(active)
    return active.flatten(1).sum(1).double().mean().item()


def density(active: Tensor) -> Tensor:
    """(L,) float64: the fraction of rows on which each latent fires."""
    _are_bool(active)
    return by_latent(active).double().mean(0)


def by_latent(active: Tensor) -> Tensor:
    """(B, L, ...) bool -> (B, L) bool: a feature map fires when any of its positions does."""
    return active.flatten(2).any(2) if active.ndim > 2 else active


def dead_fraction(active: Tensor) -> float:
    """The fraction of latents that fire on no row."""
    return (density(active) == 0).double().mean().item()


def mean_activation(latents: Tensor) -> float:
    """Mean over rows and latents: the course's average rho_hat."""
    return latents.double().mean().item()


def _are_bool(active: Tensor) -> None:
    if active.dtype != torch.bool:
        raise TypeError(f"expected which latents fire, as bool (Activation.active(latents)); got {active.dtype}")


def _same_shape(x: Tensor, recon: Tensor) -> None:
    if x.shape != recon.shape:
        raise ValueError(f"x and recon must have one shape; x is {tuple(x.shape)}, recon {tuple(recon.shape)}")


class Moments:
    """Count, mean and squared deviations per column, over a stream, without keeping it.

    Chan, Golub & LeVeque 1983: merging blocks keeps the digits that ``E[x^2] - E[x]^2`` loses.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.m2 = torch.zeros((), dtype=torch.float64)

    @classmethod
    def of(cls, x: Tensor) -> Moments:
        moments = cls()
        moments.update(x)
        return moments

    def update(self, x: Tensor) -> None:
        """Take in (B, ...) more rows."""
        x = x.double()
        n = len(x)
        if n == 0:
            return
        mean = x.mean(0)
        m2 = (x - mean).square().sum(0)
        total = self.count + n
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta.square() * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.count = total

    @property
    def squared_deviation(self) -> float:
        """Sum over rows and columns of (x - mean)^2; what rounding leaves in a constant column counts as 0."""
        return float(self._deviation.sum())

    def mean_unexplained(self, squared_error: Tensor) -> float:
        """Mean over columns of each column's own FVU, so that one of large scale does not speak for all. (D,) -> 1.

        A column that comes out worse than its own mean counts as 1, wholly unexplained; constant columns have nothing
        to explain and are left out.
        """
        varies = self._deviation != 0
        if not varies.any():
            return unexplained(float(squared_error.sum()), 0.0)
        return float((squared_error[varies] / self._deviation[varies]).clamp(max=1).mean())

    @property
    def _deviation(self) -> Tensor:
        rounding = self.count * (8 * torch.finfo(torch.float64).eps * self.mean).square()
        return self.m2.where((self.m2 > rounding) | self.m2.isnan(), 0.0)

    @property
    def variance(self) -> Tensor:
        """Population variance of each column."""
        return self.m2 / max(self.count, 1)
