"""How alike two pictures are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.metrics.reconstruction import same_shape

__all__ = ["psnr", "ssim"]

_WINDOW = 11


def psnr(x: Tensor, recon: Tensor, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB: ``10 log10(data_range^2 / mse)`` of each row, averaged over rows.

    A row reproduced exactly has no noise and is infinite.
    """
    same_shape(x, recon)
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
    same_shape(x, recon)
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
