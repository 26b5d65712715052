"""``.npy`` files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.arrays import ArraySource
from fewfire.sources.reading import reading
from fewfire.sources.registry import suffixes

__all__ = ["NpyHeader", "NpySource"]

MAX_HEADER_BYTES = 10_000
"""as numpy's own limit; a header of plain numbers takes about 100"""
MAX_RANK = 16


@suffixes(".npy")
class NpySource(ArraySource):
    """A ``.npy`` file, memory-mapped: rows are read when a batch needs them, so it may be larger than memory.

    Do not write to the file meanwhile: write another and rename it. A file that has become shorter is an error at the
    next batch; one that shrinks in the middle of a read ends the process, as with any memory map.

    Parameters
    ----------
    path
        A file written by ``numpy.save``: (n, columns) or (n, *row shape) real numbers. Pickled objects are
        never loaded.
    layout, suggested_preprocess
        As in :class:`ArraySource`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    TypeError, ValueError
        It is not a ``.npy`` file, is not as long as its header says, or holds something else than rows of real
        numbers.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: Layout | Mapping[str, Any] | None = None,
        suggested_preprocess: Spec = None,
    ) -> None:
        path = Path(path)
        with reading(path):
            array = _map(path)
            super().__init__(array, layout=layout, name=path.stem, suggested_preprocess=suggested_preprocess)


def _map(path: Path) -> npt.NDArray[Any]:
    with path.open("rb") as file:
        header = NpyHeader.read(file)
    if 0 in header.shape or not header.shape:
        return np.empty(header.shape, np.uint8)  # nothing to map; its shape will be refused
    size = path.stat().st_size
    if size != header.end:
        raise ValueError(
            f"expected {header.end:,} bytes for {header.dtype} of shape {header.shape}, the file has {size:,}; "
            "it was cut short, or something was written behind the array"
        )
    order: Any = "F" if header.fortran_order else "C"
    return np.memmap(path, header.dtype, mode="r", offset=header.offset, shape=header.shape, order=order)


_FIELD = re.compile(r"'(descr|fortran_order|shape)'\s*:\s*('[^']*'|True|False|\([\dL,\s]*\))")
_DESCR = re.compile(r"'([<>|=]?[biufcmMSUVO]\d{0,9}(?:\[\w{1,9}\])?)'")


@dataclass(frozen=True)
class NpyHeader:
    """What stands before the numbers of an array in numpy's format (numpy.lib.format, versions 1 to 3)."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int
    """bytes before the numbers"""

    @property
    def end(self) -> int:
        """Bytes of header and numbers."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def read(cls, file: IO[bytes]) -> NpyHeader:
        """From the start of a file that may come from a stranger: measured before it is read, never evaluated.

        Raises
        ------
        ValueError
            It is not such a header, or a longer or stranger one than an array of numbers needs.
        TypeError
            The array holds Python objects or fields.
        """
        start = file.read(8)
        if start[:6] != b"\x93NUMPY" or len(start) < 8 or start[6] not in (1, 2, 3):
            raise ValueError("it is not a .npy file of numbers: it does not start like one")
        width = 2 if start[6] == 1 else 4
        length = int.from_bytes(file.read(width), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"expected a header of at most {MAX_HEADER_BYTES:,} bytes, got a length of {length:,}")
        text = file.read(length).decode("latin1")
        if len(text) < length:
            raise ValueError("it ends inside its header")
        dtype, shape, fortran_order = _parse(text)
        return cls(dtype, shape, fortran_order, 8 + width + length)


def _parse(text: str) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """``{'descr': '<f4', 'fortran_order': False, 'shape': (23, 3), }``, read by pattern: numpy evaluates it."""
    fields = dict(_FIELD.findall(text))
    left_over = _FIELD.sub("", text, count=3).translate(dict.fromkeys(map(ord, ", \n")))
    if len(fields) < 3 or left_over != "{}":
        if re.search(r"'descr'\s*:\s*\[", text):
            raise TypeError("it holds a structured array, expected a plain one of numbers; save its fields as columns")
        raise ValueError("it is not a .npy file of numbers: its header is damaged")
    descr = _DESCR.fullmatch(fields["descr"])
    sizes = re.fullmatch(r"\(\s*((?:\d{1,18}L?\s*,\s*)*(?:\d{1,18}L?)?)\s*\)", fields["shape"])
    if descr is None or sizes is None or fields["fortran_order"] not in ("True", "False"):
        raise ValueError("it is not a .npy file of numbers: its header is damaged")
    if "O" in descr[1]:
        raise TypeError("it holds pickled Python objects, which are never loaded; save an array of numbers")
    shape = tuple(map(int, re.findall(r"\d+", sizes[1])))
    if len(shape) > MAX_RANK:
        raise ValueError(f"expected at most {MAX_RANK} dimensions, got {len(shape)}")
    try:
        return np.dtype(descr[1]), shape, fields["fortran_order"] == "True"
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"unknown type of numbers {descr[1]!r} ({error})") from None
