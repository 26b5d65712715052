"""Data sets that come with the installation: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from fewfire.sources.pictures import SUFFIXES, look, picture_paths, read_pixels
from fewfire.sources.reading import machine_memory
from fewfire.sources.registry import built_in

__all__ = ["cut_patches", "digits", "patches", "photographs"]

Picture = npt.NDArray[np.float64]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's "L"
_MARGIN = 5  # pixels; beyond it lies 0.03 % of the whitening kernel's energy


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
    pictures = _sample_photographs() if images is None else [_grey(image) for image in images]
    if not pictures:
        raise ValueError("patches needs at least one picture, got an empty list")
    cut = cut_patches(
        [picture.shape for picture in pictures],
        lambda i: whiten_1_over_f(pictures[i]) if whiten else pictures[i],
        size,
        n,
        seed,
    )
    return ArraySource(
        cut.reshape(n, -1),
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
    paths = picture_paths(folder)
    if not paths:
        raise FileNotFoundError(f"no pictures in {folder}; looked for {', '.join(SUFFIXES)}")
    return [_read_grey(path) for path in paths]


def _read_grey(path: Path) -> Picture:
    form = look(path)
    pixels = read_pixels(path, form)
    return pixels / float(form.white) if form.grey else _luminance(np.moveaxis(pixels, 0, -1))


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


def cut_patches(
    sizes: Sequence[tuple[int, ...]],
    read: Callable[[int], npt.NDArray[Any]],
    side: int,
    n: int,
    seed: int,
    names: Sequence[str] = (),
) -> npt.NDArray[np.float32]:
    """Square patches at random positions, clear of the borders, where whitening wraps around.

    Parameters
    ----------
    sizes
        (h, w) of each picture.
    read
        The i-th picture, (h, w) or (channels, h, w): asked for once, and only when a patch comes from it.
    side, n, seed
        Pixels along a side, patches, and what the positions depend on besides ``sizes``.
    names
        Of the pictures, for errors.

    Returns
    -------
    (n, side, side) or (n, channels, side, side).
    """
    if not all(isinstance(value, int) and value >= 1 for value in (side, n)):
        raise ValueError(f"patches needs size and n of at least 1, got size={side!r:.20}, n={n!r:.20}")
    memory = machine_memory()
    if memory is not None and n * side * side * 4 > memory:
        raise ValueError(f"{n:,} patches of {side} x {side} do not fit in memory ({memory:,} bytes); ask for fewer")
    least = side + 2 * _MARGIN
    for i, size in enumerate(sizes):
        if min(size) < least:
            name = f" ({names[i]})" if names else ""
            raise ValueError(f"patches of {side} pixels need pictures of {least} or more, got {size}{name}")
    places = [(height - least + 1, width - least + 1) for height, width in sizes]
    ends = np.cumsum([rows * columns for rows, columns in places])
    drawn = torch.randint(int(ends[-1]), (n,), generator=rng.generator(seed, "patches")).numpy()
    cut = np.empty(0, np.float32)
    for i, end in enumerate(ends):
        rows, columns = places[i]
        here = (drawn < end) & (drawn >= end - rows * columns)
        if not here.any():
            continue
        inner = read(i)[..., _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
        windows = sliding_window_view(inner, (side, side), axis=(-2, -1))  # (..., rows, columns, side, side)
        row, column = np.divmod(drawn[here] - (end - rows * columns), columns)
        found = np.moveaxis(windows[..., row, column, :, :], -3, 0)
        if not cut.size:
            cut = np.empty((n, *found.shape[1:]), np.float32)
        cut[here] = found
    return cut
