"""What a model makes of data, as files: codes and reconstructions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp
from torch import Tensor

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.disk import atomic_writer
from fewfire.rows import check_finite

__all__ = ["check_not_input", "write_codes", "write_reconstructions"]

BATCH = 8192


def check_not_input(data: str | Path, out: str | Path) -> None:
    """Refuse to write over the data that are read, under whatever name: they would be lost.

    Raises
    ------
    ValueError
        ``out`` is ``data``.
    """
    if Path(data).exists() and Path(out).exists() and Path(data).samefile(out):
        raise ValueError(f"{out} holds the data themselves, and would be overwritten; give --out another name")


def write_codes(model: Autoencoder, source: Source, out: str | Path) -> tuple[int, ...]:
    """Latents of every row, in order; returns their shape (n, L).

    ``.npz`` a scipy CSR matrix (``scipy.sparse.load_npz``) · ``.npy`` dense · ``.parquet`` per row two lists, the
    indices and the values of the latents that are not 0.
    """
    out = Path(out)
    latents = (model.encode(x).flatten(1).cpu() for x in _rows(model, source))
    writers = {".npz": _write_csr, ".npy": _write_npy, ".parquet": _write_sparse_parquet}
    return _writer(writers, out)(latents, out)


def write_reconstructions(model: Autoencoder, source: Source, out: str | Path) -> tuple[int, ...]:
    """Reconstructions of every row, in order and in data space; returns their shape (n, *target shape).

    ``.npy`` · ``.parquet`` with the columns' own names.
    """
    out = Path(out)
    recon = (model.reconstruct(x).cpu() for x in _rows(model, source))

    def parquet(rows: Iterator[Tensor], path: Path) -> tuple[int, ...]:
        return _write_columns(rows, path, source.layout.columns)

    return _writer({".npy": _write_npy, ".parquet": parquet}, out)(recon, out)


def _rows(model: Autoencoder, source: Source) -> Iterator[Tensor]:
    """The input rows in order, each known to be finite."""
    model.layout.check_columns(source.layout.columns)
    for batch in source.batches(BATCH, shuffle=False):
        check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
        yield batch.x_in


Writer = Callable[[Iterator[Tensor], Path], tuple[int, ...]]


def _writer(writers: Mapping[str, Writer], out: Path) -> Writer:
    if out.suffix not in writers:
        raise ValueError(f"expected an output that ends in {', '.join(writers)}; got {out.name!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} into; create it first")
    return writers[out.suffix]


def _write_csr(latents: Iterator[Tensor], path: Path) -> tuple[int, ...]:
    codes = sp.vstack([sp.csr_array(z.numpy()) for z in latents], format="csr")
    with atomic_writer(path) as file:
        sp.save_npz(file, codes)
    return tuple(codes.shape)


def _write_npy(rows: Iterator[Tensor], path: Path) -> tuple[int, ...]:
    array: npt.NDArray[Any] = next(rows).numpy()
    shape = array.shape
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False}
    with atomic_writer(path) as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
        file.write(array.tobytes())
        for r in rows:
            file.write(r.numpy().tobytes())
            shape = (shape[0] + len(r), *shape[1:])
        file.seek(0)  # numpy leaves room in the header for the number of rows to grow
        np.lib.format.write_array_header_1_0(file, {**header, "shape": shape})
    return shape


def _write_sparse_parquet(latents: Iterator[Tensor], path: Path) -> tuple[int, ...]:
    shape = (0, 0)

    def tables() -> Iterator[pa.Table]:
        nonlocal shape
        for z in latents:
            codes = sp.csr_array(z.numpy())
            shape = (shape[0] + codes.shape[0], codes.shape[1])
            offsets = pa.array(codes.indptr, pa.int32())
            yield pa.table(
                {
                    "indices": pa.ListArray.from_arrays(offsets, pa.array(codes.indices, pa.int32())),
                    "values": pa.ListArray.from_arrays(offsets, pa.array(codes.data)),
                }
            )

    _write_tables(tables(), path)
    return shape


def _write_columns(rows: Iterator[Tensor], path: Path, columns: tuple[str, ...]) -> tuple[int, ...]:
    shape: tuple[int, ...] = ()

    def tables() -> Iterator[pa.Table]:
        nonlocal shape
        for r in rows:
            flat = r.flatten(1).numpy()
            shape = ((shape[0] if shape else 0) + len(r), *r.shape[1:])
            # A target of another width than the input has no names; and names may repeat.
            names = columns if len(columns) == flat.shape[1] else [f"x{i}" for i in range(flat.shape[1])]
            yield pa.table([pa.array(column) for column in flat.T], names=list(names))

    _write_tables(tables(), path)
    return shape


def _write_tables(tables: Iterator[pa.Table], path: Path) -> None:
    first = next(tables)
    with atomic_writer(path) as file, pq.ParquetWriter(file, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
