"""The first reading of the rows: every code to a Parquet file, and what is counted on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Source, SparseCodes
from fewfire.explorer.smallest import Entries, Smallest, hashed, joined, strongest_first
from fewfire.rows import check_finite
from fewfire.scoring import score_rows
from fewfire.sparse_codes import finds_codes

__all__ = ["N_BINS", "N_SAMPLED", "N_TOP", "Codes", "Scan", "as_sparse", "batches", "codes_of", "scan"]

N_TOP = 16
"""strongest examples of a feature"""
N_SAMPLED = 32
"""entries of a feature drawn at random, from which examples at its quantiles are taken"""
N_BINS = 24
"""of a feature's histogram"""
LATENTS_AT_ONCE = 1 << 24
"""of a batch whose latents are dense: 64 MiB"""
MOST_ROWS_AT_ONCE = 4096


@dataclass
class Scan:
    """What the rows told, L features and n rows."""

    n_rows: int
    fired: npt.NDArray[np.int64]
    """(L,) rows on which it fired"""
    total: npt.NDArray[np.float64]
    """(L,) sum of its activations on these"""
    low: npt.NDArray[np.float32]
    """(L,) its smallest activation, 0 where it has none"""
    high: npt.NDArray[np.float32]
    """(L,) its largest"""
    histogram: npt.NDArray[np.int64]
    """(L, N_BINS) activations that are not 0, from the smaller of 0 and ``low`` to ``high``"""
    by_class: npt.NDArray[np.int64] | None
    """(L, C) rows of each class on which it fired; None without classes"""
    top: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
    """(L, N_TOP) rows, -1 for none, and activations: strongest first"""
    sampled: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
    """(L, N_SAMPLED) the same, drawn at random"""
    score: npt.NDArray[np.float64]
    """(n,) reconstruction error, as ``fewfire score`` has it"""
    n_active: npt.NDArray[np.int32]
    """(n,) features that fire"""

    @property
    def density(self) -> npt.NDArray[np.float64]:
        """(L,) share of the rows on which it fired."""
        return self.fired / max(self.n_rows, 1)


def scan(
    model: Autoencoder,
    source: Source,
    codes: Path,
    *,
    limit: int,
    classes: npt.NDArray[np.int64] | None = None,
    advance: Callable[[int], Any] = lambda n: None,
) -> Scan:
    """Read up to ``limit`` rows once, write their codes, and count.

    Parameters
    ----------
    codes
        The Parquet file to write: a row of lists ``indices`` and ``values`` for each row of the source, in its order.
    classes
        (n,) the class of each row, -1 for none.
    advance
        Called with the rows of each batch.

    Raises
    ------
    ValueError
        The source gave no rows, or one holds NaN or infinity.
    """
    n_features = model.latent_shape[0]
    n_classes = 0 if classes is None else int(classes.max(initial=0)) + 1
    counts = _Counts(n_features, n_classes)
    top, sampled = Smallest(n_features, N_TOP), Smallest(n_features, N_SAMPLED)
    scores, n_active = [], []
    with _CodesWriter(codes) as writer:
        for first, batch in batches(model, source, limit):
            entries, sparse = codes_of(model, batch.x_in)
            fires = model.activation.active(torch.from_numpy(entries.values)).numpy()
            counts.add(entries, fires, None if classes is None else classes[first : first + len(batch.rows)])
            n_active.append(np.bincount(entries.rows[fires], minlength=len(batch.rows)).astype(np.int32))
            writer.write(entries, len(batch.rows))
            scores.append(
                score_rows(model, batch.x_in, None if batch.x is batch.x_in else batch.x, sparse).score.numpy()
            )
            placed = entries._replace(rows=entries.rows + first)
            top.add(strongest_first(placed.values), placed)
            sampled.add(hashed(placed), placed)
            advance(len(batch.rows))
    if not scores:
        raise ValueError("expected rows to explore; the data gave none")
    score = np.concatenate(scores)
    low, high = counts.limits()
    histogram = _histogram(codes, low, high)
    found = (counts.fired, counts.total, low, high, histogram, counts.by_class)
    return Scan(len(score), *found, top.table(), sampled.table(), score, np.concatenate(n_active))


def batches(model: Autoencoder, source: Source, limit: int) -> Iterator[tuple[int, Batch]]:
    """(number of its first row, batch) of the first ``limit`` rows, in order; the same each time it is asked."""
    fitting = MOST_ROWS_AT_ONCE if finds_codes(model) else max(16, LATENTS_AT_ONCE // int(np.prod(model.latent_shape)))
    first = 0
    for batch in source.batches(min(MOST_ROWS_AT_ONCE, fitting), shuffle=False):
        check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
        x_in = batch.x_in[: limit - first]
        yield first, Batch(x_in, x_in if batch.x is batch.x_in else batch.x[: limit - first], batch.rows[: len(x_in)])
        first += len(x_in)
        if first >= limit:
            return


def codes_of(model: Autoencoder, x: Tensor) -> tuple[Entries, SparseCodes | None]:
    """(B, *input shape) -> the latents that are not 0, rows counted from 0, sorted by row; and as SparseCodes.

    No SparseCodes come of a model that is not asked for them, because others would be decoded with other rounding.
    """
    if not finds_codes(model):
        height = _height(model.encode(x))
        rows, features = height.nonzero(as_tuple=True)
        return Entries(features.numpy(), rows.numpy(), height[rows, features].float().numpy()), None
    codes = model.encode_sparse(x)
    rows, slots = codes.values.nonzero(as_tuple=True)
    return Entries(codes.indices[rows, slots].numpy(), rows.numpy(), codes.values[rows, slots].float().numpy()), codes


def _height(latents: Tensor) -> Tensor:
    """(B, L, ...) -> (B, L) on the CPU: a feature map is as high as its highest place."""
    return (latents.flatten(2).amax(2) if latents.ndim > 2 else latents).cpu()


class Codes:
    """A Parquet file of codes: all entries, or those of some rows. Rows are counted from the beginning of the file."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        groups = self._file.metadata
        counts = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._held: dict[int, Entries] = {}

    def __iter__(self) -> Iterator[Entries]:
        """A part at a time, in order."""
        return (self._read(i) for i in range(len(self._starts) - 1))

    def between(self, first: int, last: int) -> Entries:
        """The entries of the rows ``first`` to ``last - 1``, in order. Neighbouring spans are read once."""
        first, last = max(0, first), min(last, int(self._starts[-1]))
        begin, end = np.searchsorted(self._starts, (first, last), side="right") - 1
        groups = [i for i in range(begin, end + 1) if i < len(self._starts) - 1]
        self._held = {i: self._held[i] if i in self._held else self._read(i) for i in groups}
        found = joined(self._held.values())
        begin, end = np.searchsorted(found.rows, (first, last))
        return Entries(found.features[begin:end], found.rows[begin:end], found.values[begin:end])

    def _read(self, group: int) -> Entries:
        part = self._file.read_row_group(group).combine_chunks()
        indices, values = (part.column(name).chunk(0) for name in ("indices", "values"))
        lengths = np.diff(indices.offsets.to_numpy())
        rows = np.repeat(self._starts[group] + np.arange(len(part)), lengths)
        return Entries(indices.flatten().to_numpy().astype(np.int64), rows, values.flatten().to_numpy())


def as_sparse(entries: Entries, n_rows: int) -> SparseCodes:
    """Entries sorted by row, rows counted from 0, as SparseCodes (n_rows, K)."""
    lengths = np.bincount(entries.rows, minlength=n_rows)
    slots = np.arange(len(entries.rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    indices = np.zeros((n_rows, max(1, int(lengths.max(initial=0)))), dtype=np.int64)
    values = np.zeros(indices.shape, dtype=np.float32)
    indices[entries.rows, slots], values[entries.rows, slots] = entries.features, entries.values
    return SparseCodes(torch.from_numpy(indices), torch.from_numpy(values))


class _Counts:
    """Running sums over entries."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        self.fired = np.zeros(n_features, dtype=np.int64)
        self.total = np.zeros(n_features)
        self.by_class = np.zeros((n_features, n_classes), dtype=np.int64) if n_classes else None
        self._low = np.full(n_features, np.inf, dtype=np.float32)
        self._high = np.full(n_features, -np.inf, dtype=np.float32)

    def add(self, entries: Entries, fires: npt.NDArray[np.bool_], classes: npt.NDArray[np.int64] | None) -> None:
        n_features = len(self.fired)
        firing = entries.where(fires)
        self.fired += np.bincount(firing.features, minlength=n_features)
        self.total += np.bincount(firing.features, weights=firing.values, minlength=n_features)
        np.minimum.at(self._low, entries.features, entries.values)
        np.maximum.at(self._high, entries.features, entries.values)
        if self.by_class is not None and classes is not None:
            of_entry = classes[firing.rows]
            known = of_entry >= 0
            flat = firing.features[known] * self.by_class.shape[1] + of_entry[known]
            self.by_class += np.bincount(flat, minlength=self.by_class.size).reshape(self.by_class.shape)

    def limits(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(L,) and (L,), both 0 for a feature without entries."""
        seen = np.isfinite(self._high)
        return np.where(seen, self._low, 0), np.where(seen, self._high, 0)


class _CodesWriter:
    """Codes as Parquet: per row two lists, the indices and the values of the latents that are not 0."""

    SCHEMA = pa.schema([("indices", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))])

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetWriter(path, self.SCHEMA, compression="zstd")

    def __enter__(self) -> _CodesWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, entries: Entries, n_rows: int) -> None:
        lengths = np.bincount(entries.rows, minlength=n_rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        sides = (pa.array(entries.features, pa.int32()), pa.array(entries.values, pa.float32()))
        lists = [pa.ListArray.from_arrays(offsets, side) for side in sides]
        self._file.write_table(pa.table(lists, schema=self.SCHEMA))


def _histogram(codes: Path, low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """(L, N_BINS) how often activations lie in each of N_BINS even steps from min(low, 0) to high."""
    start = np.minimum(low, 0)
    width = np.where(high > start, high - start, 1).astype(np.float64)
    counts = np.zeros(len(low) * N_BINS, dtype=np.int64)
    for entries in Codes(codes):
        share = (entries.values - start[entries.features]) / width[entries.features]
        bins = np.clip((share * N_BINS).astype(np.int64), 0, N_BINS - 1)
        counts += np.bincount(entries.features * N_BINS + bins, minlength=len(counts))
    return counts.reshape(len(low), N_BINS)
