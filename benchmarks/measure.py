"""What the benchmarks share: reading MNIST, linear probes, CPU seconds, tables.

A benchmark sets ``OMP_NUM_THREADS=1`` before anything imports numpy or torch, so that a CPU second is a second of one
thread, whatever machine and however busy it is. Run them as ``python benchmarks/NAME.py``: Python then finds this
file beside them.
"""

from __future__ import annotations

import gzip
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["CpuSeconds", "Labelled", "Mnist", "mnist", "print_table", "print_title", "probe"]


class Labelled(NamedTuple):
    """Rows and what they show."""

    x: npt.NDArray[np.float32]
    y: npt.NDArray[np.uint8]

    def take(self, rows: npt.NDArray[np.int64]) -> Labelled:
        return Labelled(self.x[rows], self.y[rows])


class Mnist(NamedTuple):
    train: Labelled
    test: Labelled

    def held_out(self, n: int, n_validation: int) -> Mnist:
        """``n`` training rows, and as "test" ``n_validation`` other training rows: what settings are chosen on."""
        order = np.random.default_rng(0).permutation(len(self.train.x))
        return Mnist(self.train.take(order[n_validation:][:n]), self.train.take(order[:n_validation]))


def mnist(folder: Path) -> Mnist:
    """The 60,000 and 10,000 digits as rows of 784 values in [0, 1], from the four ``*-ubyte.gz`` files.

    Raises
    ------
    FileNotFoundError
        One of the four is not in the folder.
    ValueError
        A file is not what its name says.
    """
    parts = []
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        pictures = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", (n, 28, 28))
        labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", (n,))
        parts.append(Labelled(pictures.reshape(n, 784).astype(np.float32) / 255, labels))
    return Mnist(*parts)


def _read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """An idx file: 0, 0, 8 (uint8), the number of dimensions, each dimension big-endian, the values."""
    raw = gzip.decompress(path.read_bytes())
    header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
    if raw[: len(header)] != header or len(raw) != len(header) + np.prod(shape):
        raise ValueError(f"{path.name} is not an idx file of shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=len(header)).reshape(shape)


def probe(train: Labelled, test: Labelled, strength: float = 1.0) -> float:
    """Share of ``test`` that a logistic regression on the standardised columns of ``train`` gets right.

    Columns are scaled by the mean and deviation of ``train``; a column that is constant there becomes 0.
    ``strength`` is scikit-learn's C, the inverse of the regularisation; lbfgs, at most 300 iterations.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scale = StandardScaler().fit(train.x)
    classifier = LogisticRegression(C=strength, max_iter=300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # raw pixels need more than 300; part of the protocol
        classifier.fit(scale.transform(train.x), train.y)
    return float(classifier.score(scale.transform(test.x), test.y))


class CpuSeconds:
    """``with CpuSeconds() as cpu: ...`` and then ``cpu.used``: CPU seconds of this process, all its threads."""

    used = float("nan")

    def __enter__(self) -> CpuSeconds:
        self._start = time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.used = time.process_time() - self._start


def print_title(title: str) -> None:
    """The title, and under it what the numbers depend on."""
    import sklearn
    import torch

    print(f"\n{title}")
    print(f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, {torch.get_num_threads()} thread\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns as wide as they need to be; the first to the left, the others to the right."""
    lines = [list(map(str, line)) for line in (header, *rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for n, line in enumerate(lines):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join([first, *rest]).rstrip())
        if n == 0:
            print("  ".join("-" * width for width in widths))
