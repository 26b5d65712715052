"""How unusual each row is, and which columns are to blame: what ``fewfire score`` writes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fewfire.anomaly import Detector
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Layout, Source, SparseCodes
from fewfire.disk import atomic_writer
from fewfire.rows import as_rows, check_finite

__all__ = ["Scores", "detect_rows", "score_rows", "threshold", "write_scores"]

BATCH = 4096
N_COLUMNS = 3
"""columns named for each row"""


class Scores(NamedTuple):
    """Of B rows."""

    score: Tensor
    """(B,) float64, larger is more unusual. Of a detector, nats of surprisal; of a reconstruction, mean squared error
    over the columns in model space, which is after ``standardize`` in units of variance"""
    share: Tensor
    """(B, D) float64, each column's share of its row's score; a row without error has shares of 0"""


def score_rows(model: Autoencoder, x: Any, target: Any = None, codes: SparseCodes | None = None) -> Scores:
    """Reconstruction error of each row, in model space, where columns of different scale have the same say.

    Parameters
    ----------
    x
        (B, *input shape) rows in data space.
    target
        (B, *target shape) what they should have become; None: ``x`` itself.
    codes
        ``model.encode_sparse(x)``, where they are known already.

    Raises
    ------
    ValueError
        Rows or targets do not have the model's shapes, or one holds NaN or infinity.
    """
    rows = as_rows(x)
    expected = rows if target is None else as_rows(target, "target")
    if expected.shape != (len(rows), *model.target_shape):
        raise ValueError(
            f"expected targets of shape {(len(rows), *model.target_shape)}, got {tuple(expected.shape)}"
            + ("; this model's targets are not its inputs: give them" if target is None else "")
        )
    if target is not None:
        check_finite(expected, "target")
    recon = model.reconstruct_in_model_space(rows, codes)
    with torch.no_grad():
        error = recon - model.target_to_model_space(expected.to(recon.device))
    squared = error.flatten(1).double().square().cpu()
    total = squared.sum(1, keepdim=True)
    return Scores(squared.mean(1), squared / total.where(total > 0, 1.0))


def detect_rows(detector: Detector, x: Any) -> Scores:
    """How unusual a detector finds each row: (B, *any shape) in data space.

    Raises
    ------
    ValueError
        Rows do not have the detector's number of columns, or one holds NaN or infinity.
    """
    rows = as_rows(x).flatten(1).double()
    if rows.shape[1] != detector.n_columns:
        raise ValueError(f"expected rows of {detector.n_columns:,} columns, got {rows.shape[1]:,}")
    check_finite(rows)
    found = detector(rows, explain=True)
    assert found.share is not None
    return Scores(found.score, found.share)


def threshold(model: Autoencoder, source: Source, *, quantile: float = 0.99, max_rows: int = 50_000) -> float:
    """The score that a share ``quantile`` of these rows stays below; NaN where no row is finite."""
    found: list[Tensor] = []
    n_rows = 0
    for batch in source.batches(BATCH, shuffle=False):
        keep = torch.isfinite(batch.x_in).flatten(1).all(1) & torch.isfinite(batch.x).flatten(1).all(1)
        found.append(score_rows(model, batch.x_in[keep], batch.x[keep]).score)
        n_rows += int(keep.sum())
        if n_rows >= max_rows:
            break
    scores = torch.cat(found)[:max_rows] if found else torch.empty(0)
    # numpy's default rule; torch.quantile takes at most 16 million values, and these are far fewer
    return float(torch.quantile(scores, quantile)) if len(scores) else math.nan


def write_scores(
    model: Autoencoder, source: Source, out: str | Path, *, above: float, detector: Detector | None = None
) -> tuple[int, int]:
    """Score every row, in order and in constant memory; returns (rows, anomalies).

    By the detector, if there is one, else by the model's reconstruction.

    One line a row: ``row``, ``score``, ``is_anomaly`` (score above ``above``), then the columns that contribute most,
    ``column_1, share_1, ...``. Written as ``.csv`` or ``.parquet``.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no folder to write into, the ending is neither, or a row is not finite.
    """
    out = Path(out)
    if out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"expected an output that ends in .csv, .parquet; got {out.name!r}")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to write {out.name} into; create it first")
    model.layout.check_columns(source.layout.columns)
    names = column_names(source.layout, math.prod(source.target_shape))
    n_rows = n_anomalies = 0
    writer: Any = None
    with atomic_writer(out) as file:
        for table in _tables(model, detector, source, names, above):
            if writer is None:
                writer = (pa_csv.CSVWriter if out.suffix == ".csv" else pq.ParquetWriter)(file, table.schema)
            writer.write_table(table)
            n_rows += len(table)
            n_anomalies += sum(table.column("is_anomaly").to_pylist())
        if writer is None:
            raise ValueError("the data gave no rows to score")
        writer.close()
    return n_rows, n_anomalies


def column_names(layout: Layout, width: int) -> list[str]:
    """A name for every value of a row: its own, ``name[t]`` in a window, else its number."""
    if layout.kind == "table" and len(layout.columns) == width:
        return list(layout.columns)
    if layout.columns and width % len(layout.columns) == 0:
        length = width // len(layout.columns)
        return [f"{name}[{t}]" for name in layout.columns for t in range(length)]
    return [f"x{i}" for i in range(width)]


def _tables(
    model: Autoencoder, detector: Detector | None, source: Source, names: list[str], above: float
) -> Iterator[pa.Table]:
    count = min(N_COLUMNS, len(names))
    labels = pa.array(names)
    for batch in source.batches(BATCH, shuffle=False):
        check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
        if batch.x is not batch.x_in:
            check_finite(batch.x, "the target", batch.rows)
        scores = score_rows(model, batch.x_in, batch.x) if detector is None else detect_rows(detector, batch.x_in)
        top = scores.share.topk(count, dim=1)
        columns: dict[str, Any] = {
            "row": batch.rows.numpy(),
            "score": scores.score.numpy(),
            "is_anomaly": (scores.score > above).numpy(),
        }
        for i in range(count):
            columns[f"column_{i + 1}"] = labels.take(pa.array(top.indices[:, i].numpy()))
            columns[f"share_{i + 1}"] = top.values[:, i].numpy()
        yield pa.table(columns)
