"""Preprocessing of whole pictures, before patches are cut from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["whiten_1_over_f"]


def whiten_1_over_f(image: npt.NDArray[Any], f0: float = 0.4, power: float = 4.0) -> npt.NDArray[np.float64]:
    """Flatten the 1/f amplitude spectrum of a natural picture, and damp the highest frequencies, the noise.

    Multiplies the spectrum by ``f * exp(-(f / f0) ** power)``; the result has mean 0 and variance 1.
    Olshausen & Field 1997, "Sparse coding with an overcomplete basis set: a strategy employed by V1?"

    Apply it to the whole picture before cutting patches, and cut them some pixels away from the border: the
    Fourier transform joins opposite edges.

    Parameters
    ----------
    image
        (h, w) grey values in any unit. A picture without contrast becomes zeros.
    f0
        Where the cut-off begins, in cycles per pixel; 0.5 is the highest a picture can hold along an axis.
    power
        Steepness of the cut-off.

    Raises
    ------
    ValueError
        The picture is not two-dimensional, is empty, or holds values that are not finite real numbers.
    """
    image = np.asarray(image)
    if image.ndim != 2 or image.size == 0 or image.dtype.kind not in "biuf":
        raise ValueError(f"expected one grey picture (h, w) of numbers, got {image.dtype} of shape {image.shape}")
    if f0 <= 0 or power <= 0:
        raise ValueError(f"f0 and power must be above 0, got f0={f0}, power={power}")
    if not np.isfinite(image).all():
        raise ValueError("expected finite grey values, got NaN or infinity; clean the picture first")
    grey = image.astype(np.float64)
    mean, std = grey.mean(), grey.std()
    if std <= 10 * np.finfo(np.float64).eps * abs(mean):  # below that it is rounding, not contrast
        return np.zeros_like(grey)
    height, width = grey.shape
    f = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    spectrum = np.fft.rfft2(grey - mean) * f * np.exp(-((f / f0) ** power))
    whitened: npt.NDArray[np.float64] = np.fft.irfft2(spectrum, s=grey.shape)
    whitened -= whitened.mean()
    return np.asarray(whitened / whitened.std(), dtype=np.float64)
