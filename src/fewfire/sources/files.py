"""Files of rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.contracts import Layout
from fewfire.preprocess import Spec
from fewfire.sources.arrays import ArraySource
from fewfire.sources.registry import suffixes

__all__ = ["NpySource"]


@suffixes(".npy")
class NpySource(ArraySource):
    """A ``.npy`` file, memory-mapped: rows are read when a batch needs them, so it may be larger than memory.

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
        It is not a ``.npy`` file, is cut short, or holds something else than rows of real numbers.
    """

    def __init__(self, path: str | Path, *, layout: Layout | None = None, suggested_preprocess: Spec = None) -> None:
        path = Path(path)
        array = _map_npy(path)
        try:
            super().__init__(array, layout=layout, name=path.stem, suggested_preprocess=suggested_preprocess)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None


def _map_npy(path: Path) -> npt.NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        # open_memmap, not load: load would also open zip archives, and unpickle if a default ever changed.
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy evaluates the header: a hostile one raises nearly anything
        reason = " ".join(str(error).split()).split(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a readable .npy file of numbers: {reason}") from None
