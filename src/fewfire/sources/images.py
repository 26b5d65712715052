"""Folders of pictures: whole, or patches cut from them."""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.contracts import Batch, Layout
from fewfire.preprocess import whiten_1_over_f
from fewfire.sources.ahead import ahead
from fewfire.sources.arrays import ArraySource
from fewfire.sources.builtin import cut_patches
from fewfire.sources.fingerprint import WHOLE_BYTES, FileState, file_digest
from fewfire.sources.indexed import IndexedSource
from fewfire.sources.pictures import SUFFIXES, Form, Pixels, look, picture_paths, read_pixels
from fewfire.sources.registry import folder

__all__ = ["ImageSource", "image_folder"]

KEPT_BYTES = 256 << 20
"""Pictures that take no more than this stay in memory once they were read."""
N_PATCHES = 50_000
MAX_SIDE = 1 << 14
MAX_VALUES = 1 << 24
"""of a whole picture, which becomes a row: 64 MiB"""


def holds_images(path: Path) -> bool:
    """Whether a folder, or one of its subfolders, holds pictures."""
    return bool(picture_paths(path)) or any(map(picture_paths, _subfolders(path)))


@folder("images", holds_images)
def image_folder(
    path: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    grey: bool | None = None,
    patch: int | None = None,
    n: int | None = None,
    whiten: bool | None = None,
    seed: int | None = None,
) -> ImageSource | ArraySource:
    """The pictures of a folder, values 0 to 1, rows of (h, w) when grey and (3, h, w) in colour.

    Files are told by their endings, in the order of their names. When the folder holds none itself, each subfolder is
    a class of pictures: ``labels`` are the classes by number, ``classes`` their names. A picture is turned as its EXIF
    orientation says, what is transparent becomes white, of an animation the first frame counts.

    Parameters
    ----------
    size
        (h, w), or one number for both: every picture is resized to it, with antialiasing, whatever its proportions.
        None: all must be of one size.
    grey
        Whether colours become grey, by ITU-R BT.601. None: when no picture has any.
    patch
        Side of square patches to cut at random positions, in place of whole pictures; each position in each picture
        is equally likely, except within 5 pixels of the borders. The patches are kept in memory, the pictures are not.
    n
        Number of patches; 50,000 unless given.
    whiten
        Apply ``whiten_1_over_f`` to each picture before cutting, in colour to each channel. None: when grey.
    seed
        Of the positions of patches; 0 unless given.

    Raises
    ------
    FileNotFoundError
        There is no such folder, or no picture in it.
    ValueError
        A picture cannot be read or is too small, sizes differ and no ``size`` was given, or options do not go together.
    """
    path = Path(path)
    if any(flag not in (None, True, False) for flag in (grey, whiten)):
        raise ValueError(f"expected grey and whiten to be true or false, got {grey!r:.30} and {whiten!r:.30}")
    paths, labels, classes = _find(path)
    name = path.resolve().name
    forms = [look(p) for p in paths]
    grey = all(form.grey for form in forms) if grey is None else grey
    forms = [replace(form, grey=grey) for form in forms]
    if patch is None:
        if not n is whiten is seed is None:
            raise ValueError("n, whiten and seed are for patches; give patch=8, the side of a patch, as well")
        height, width = _one_size(paths, forms) if size is None else _as_size(size)
        form = Form(height, width, grey, deep=any(form.deep for form in forms))
        _check_width(path, form)
        return ImageSource(paths, form, resize=size is not None, name=name, labels=labels, classes=classes)
    if size is not None:
        raise ValueError(f"give size, for whole pictures, or patch, for pieces of them; got size={size}, patch={patch}")
    read = partial(_read_for_patches, paths, forms, grey if whiten is None else whiten)
    n, seed = N_PATCHES if n is None else n, 0 if seed is None else seed
    cut = cut_patches([form.size for form in forms], read, patch, n, seed, names=[str(p) for p in paths])
    return ArraySource(cut, name=name, suggested_preprocess=["row_mean", "center"])


class ImageSource(IndexedSource):
    """Whole pictures of one form, each a row; read when a batch needs them, one batch ahead.

    Pictures that together take at most 256 MiB stay in memory once read.

    Parameters
    ----------
    paths
        The files, one a row.
    form
        What all of them are given as.
    resize
        Bring each to the form's size; else one of another size is an error.
    name
        A short label for people.
    labels
        One per row: ``labels[batch.rows]``. Never trained on.
    classes
        The names of the labels.

    Raises
    ------
    ValueError
        From the iterator: a picture is damaged, or of another size. The message names it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        form: Form,
        *,
        resize: bool = False,
        name: str = "images",
        labels: npt.ArrayLike | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        self.paths = list(paths)
        self.n_rows = len(self)
        self.row_shape = self.target_shape = form.shape
        self.layout = Layout("image", form.shape)
        self.name = name
        # One scale for all pixels, as they share a unit.
        self.suggested_preprocess = "center"
        self.labels = None if labels is None else np.asarray(labels)
        self.classes = tuple(classes)
        self._album = _Album(self.paths, form, resize)

    def _count(self) -> int:
        return len(self.paths)

    def _gather(self, where: slice | Tensor) -> tuple[Tensor, Tensor]:
        rows = np.arange(len(self.paths))[where] if isinstance(where, slice) else where.numpy()
        x = torch.from_numpy(self._album.read(rows))
        return x, x

    def _batches(self, places: Iterator[tuple[slice | Tensor, Tensor]]) -> Iterator[Batch]:
        if self._album.is_complete:
            yield from super()._batches(places)
            return
        stop = Event()

        def read() -> Generator[Batch, None, None]:
            yield from IndexedSource._batches(self, places)

        yield from ahead(read(), stop)

    def _hash(self, digest: Any) -> None:
        """Form, names and content; beyond 64 MiB, sizes and modification times stand for the content."""
        self._album.hash(digest)


class _Album:
    """The pixels of pictures of one form. They are kept when they are few or small."""

    def __init__(self, paths: Sequence[Path], form: Form, resize: bool) -> None:
        self._paths = paths
        self._form = form
        self._resize = resize
        self._known = np.zeros(len(paths), bool)
        fits = len(paths) * math.prod(form.shape) * form.dtype.itemsize <= KEPT_BYTES
        self._kept = np.empty((len(paths), *form.shape), form.dtype) if fits else None

    @property
    def is_complete(self) -> bool:
        """Whether every picture is in memory."""
        return bool(self._known.all())

    def read(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(B, *shape) values from 0 to 1."""
        if self._kept is not None and self._known[rows].all():
            pixels = self._kept[rows]
        else:
            pixels = np.stack([self._read_one(row) for row in rows.tolist()])
        values = pixels.astype(np.float32)
        values /= self._form.white
        return values

    def _read_one(self, row: int) -> Pixels:
        if self._kept is not None and self._known[row]:
            kept: Pixels = self._kept[row]
            return kept
        pixels = read_pixels(self._paths[row], self._form, resize=self._resize)
        if self._kept is not None:
            self._kept[row] = pixels
            self._known[row] = True
        return pixels

    def hash(self, digest: Any) -> None:
        states = [FileState.of(path) for path in self._paths]
        whole = sum(state.size for state in states) <= WHOLE_BYTES
        digest.update(f"{self._form} {self._resize}".encode())
        for state in states:
            content = file_digest(state) if whole else f"{state.size} {state.modified}"
            digest.update(f"{state.path.name!r} {content}".encode())


# ---------------------------------------------------------------------------------------------- what the options mean


def _subfolders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _find(path: Path) -> tuple[list[Path], npt.NDArray[np.int64] | None, list[str]]:
    """The pictures, and, when they lie in subfolders, the number of each one's class and the classes' names."""
    if not path.is_dir():
        raise FileNotFoundError(f"no such folder: {path}")
    own = picture_paths(path)
    classes = {p.name: found for p in _subfolders(path) if (found := picture_paths(p))}
    if own and classes:
        raise ValueError(
            f"{path} holds pictures, {own[0].name!r:.40}, and so does its subfolder {next(iter(classes))!r:.40}; "
            "point at one of them, or keep them apart"
        )
    if not own and not classes:
        raise FileNotFoundError(f"no pictures in {path} or its subfolders; looked for {', '.join(SUFFIXES)}")
    if own:
        return own, None, []
    labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()])
    return [p for found in classes.values() for p in found], labels, list(classes)


def _one_size(paths: Sequence[Path], forms: Sequence[Form]) -> tuple[int, int]:
    for path, form in zip(paths, forms, strict=True):
        if form.size != forms[0].size:
            other = path.name if path.parent == paths[0].parent else path
            raise ValueError(
                f"expected pictures of one size; {paths[0]} is {_size(forms[0])}, {other} {_size(form)} (height x "
                "width); resize them all with size=[h, w], or cut patches of them with patch=8"
            )
    return forms[0].size


def _check_width(path: Path, form: Form) -> None:
    values = math.prod(form.shape)
    if values > MAX_VALUES:
        raise ValueError(
            f"{path}: pictures of {_size(form)} would be rows of {values:,} values, at most {MAX_VALUES:,} are taken; "
            "make them smaller with size=[h, w], or cut patches of them with patch=8"
        )


def _size(form: Form) -> str:
    return f"{form.height} x {form.width}"


def _as_size(size: Any) -> tuple[int, int]:
    """(height, width)."""
    try:
        height, width = map(operator.index, size if isinstance(size, list | tuple) else (size, size))
    except (TypeError, ValueError):
        raise ValueError(f"expected size to be a whole number or [height, width], got {size!r:.60}") from None
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise ValueError(f"expected sides of 1 to {MAX_SIDE} pixels, got size={size!r:.60}")
    return height, width


def _read_for_patches(paths: Sequence[Path], forms: Sequence[Form], whiten: bool, i: int) -> npt.NDArray[np.float64]:
    """A picture with values 0 to 1, or whitened."""
    values = read_pixels(paths[i], forms[i]) / float(forms[i].white)
    if not whiten:
        return values
    return whiten_1_over_f(values) if values.ndim == 2 else np.stack([whiten_1_over_f(channel) for channel in values])
