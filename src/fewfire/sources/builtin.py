"""Data sets that come with the installation: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numpy.lib.stride_tricks import sliding_window_view

from fewfire import rng
from fewfire.contracts import Layout
from fewfire.preprocess import whiten_1_over_f
from fewfire.sources.arrays import ArraySource
from fewfire.sources.registry import built_in

__all__ = ["digits", "patches", "photographs"]

Picture = npt.NDArray[np.float64]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's "L"
_MARGIN = 5  # pixels; beyond it lies 0.03 % of the whitening kernel's energy
_PICTURE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@built_in
def digits() -> ArraySource:
    """1797 handwritten digits of 8 x 8 pixels, grey values 0 to 16, from scikit-learn; ``labels`` are 0 to 9.

    Alpaydin & Kaynak 1998, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return ArraySource(
        bunch.data.astype(np.float32),
        layout=Layout("image", (8, 8)),
        name="digits",
        # One scale for all pixels: a scale per pixel would blow up the borders, which are almost always 0.
        suggested_preprocess="center",
        labels=bunch.target,
    )


@built_in
def patches(
    size: int = 8,
    n: int = 50_000,
    whiten: bool = True,
    seed: int = 0,
    images: Sequence[npt.ArrayLike] | None = None,
) -> ArraySource:
    """Random square patches of grey photographs, each flattened to a row of ``size * size`` values.

    The data of Olshausen & Field 1997 and of the UFLDL exercise, whose features are edges. Every position is
    equally likely, whichever picture it is in; positions within 5 pixels of the border are left out. For
    sigmoid outputs, as in the exercise, preprocess with ``["row_mean", "clip_scale"]``.

    Parameters
    ----------
    size
        Side of a patch in pixels.
    n
        Number of patches.
    whiten
        Apply ``whiten_1_over_f`` to each whole picture before cutting. The positions are the same either way.
    seed
        Of the positions; they depend on nothing else but the sizes of the pictures.
    images
        Grey pictures (h, w); None: scikit-learn's two photographs, with values from 0 to 1.

    Raises
    ------
    ValueError
        A picture is not grey, not finite, or smaller than a patch with margins; ``size`` or ``n`` is below 1.
    """
    if size < 1 or n < 1:
        raise ValueError(f"patches needs size and n of at least 1, got size={size}, n={n}")
    pictures = _sample_photographs() if images is None else [_grey(image) for image in images]
    if not pictures:
        raise ValueError("patches needs at least one picture, got an empty list")
    if whiten:
        pictures = [whiten_1_over_f(picture) for picture in pictures]
    return ArraySource(
        _cut(pictures, size, n, seed),
        layout=Layout("image", (size, size)),
        name="patches",
        suggested_preprocess=["row_mean", "center"],
    )


def photographs(folder: str | Path) -> list[Picture]:
    """The pictures in a folder, in the order of their names, as grey values (h, w) from 0 to 1.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no picture in it.
    ValueError
        A picture cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder: {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no pictures in {folder}; looked for {', '.join(sorted(_PICTURE_SUFFIXES))}")
    return [_read_grey(path) for path in paths]


def _read_grey(path: Path) -> Picture:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode.startswith("I;16"):  # convert() would clip 16 bits to 8
                return np.asarray(image, dtype=np.float64) / 65535
            return _luminance(np.asarray(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path}: {error}") from None


def _sample_photographs() -> list[Picture]:
    from sklearn.datasets import load_sample_images

    return [_luminance(image) for image in load_sample_images().images]


def _luminance(rgb: npt.NDArray[np.uint8]) -> Picture:
    """(h, w, 3) of 0 to 255 -> (h, w) of 0 to 1."""
    return np.asarray(rgb @ np.array(_LUMA) / 255)


def _grey(image: npt.ArrayLike) -> npt.NDArray[Any]:
    picture = np.asarray(image)
    if picture.ndim != 2 or picture.dtype.kind not in "biuf" or not np.isfinite(picture).all():
        raise ValueError(
            f"expected grey pictures (h, w) of finite numbers, got {picture.dtype} of shape {picture.shape}"
        )
    return picture


def _cut(pictures: Sequence[npt.NDArray[Any]], size: int, n: int, seed: int) -> npt.NDArray[np.float32]:
    """(n, size * size): patches at random positions, clear of the borders, where whitening wraps around."""
    inner = [picture[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN] for picture in pictures]
    for picture, usable in zip(pictures, inner, strict=True):
        if min(usable.shape) < size:
            least = size + 2 * _MARGIN
            raise ValueError(f"patches of {size} pixels need pictures of {least} or more, got {picture.shape}")
    windows = [sliding_window_view(usable, (size, size)) for usable in inner]  # (rows, columns, size, size)
    ends = np.cumsum([view.shape[0] * view.shape[1] for view in windows])
    drawn = torch.randint(int(ends[-1]), (n,), generator=rng.generator(seed, "patches")).numpy()
    cut = np.empty((n, size * size), dtype=np.float32)
    for view, end in zip(windows, ends, strict=True):
        count = view.shape[0] * view.shape[1]
        here = (drawn < end) & (drawn >= end - count)
        row, column = np.divmod(drawn[here] - (end - count), view.shape[1])
        cut[here] = view[row, column].reshape(-1, size * size)
    return cut
