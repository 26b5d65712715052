"""What the codes are good for: a classifier, neighbours, clusters and neighbourhoods, beside the columns and PCA."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from fewfire import metrics
from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Source
from fewfire.rows import check_finite, is_missing
from fewfire.sources import open_source
from fewfire.sources.dialect import DELIMITERS, Dialect
from fewfire.sources.lines import count_cells

__all__ = ["MEANINGS", "probe", "read_labels"]

Rows = npt.NDArray[np.floating[Any]]

BATCH = 4096
NEIGHBOURS = 5
TRUST_ROWS = 2_000
"""rows whose neighbourhoods are compared: the cost grows with their square"""

FEW = (1, 2, 5)
"""how many numbers of a row a sparse probe may look at (Karvonen et al. 2025, SAEBench)"""
MOST_CLASSES = 20
"""the most frequent ones; every class is a probe of its own"""

MEANINGS = {
    "fvu": "variance not rebuilt, on a quarter of the rows, held out",
    "probe_accuracy": "logistic regression, on the same quarter",
    "probe_1": "one class or not, from the 1 number that differs most: .5 chance, mean over classes",
    "probe_2": "the same from 2",
    "probe_5": "the same from 5",
    "probe_all": "the same from all",
    "knn_accuracy": "vote of the 5 nearest rows, on the same quarter",
    "ari": "k-means clusters beside the labels: 1 the same, 0 chance",
    "trustworthiness": "near rows that were near in the columns too: 1 all",
}


def probe(
    model: Autoencoder | HasModel, data: Any, labels: npt.ArrayLike, *, max_rows: int = 20_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How much of the labels is in the codes, beside the columns themselves and PCA of the same size.

    Columns are taken after the model's preprocessing, so that all are compared on the same scales.

    Parameters
    ----------
    data
        A Source, or whatever ``open_source`` makes one of, such as an array.
    labels
        One per row, numbers or text, of two or more classes with at least two rows each.
    max_rows
        The first so many rows are used.
    seed
        Of the split and of k-means.

    Returns
    -------
    dict
        ``{"codes": ..., "columns": ..., "pca": ...}``, each with ``size`` and the keys of ``MEANINGS``. PCA has as many
        components as there are latents, or as the data allow.

    Raises
    ------
    ValueError
        The labels do not fit the rows, one is missing, or there are too few of a class.
    """
    if max_rows < 1:
        raise ValueError(f"expected max_rows of at least 1, got {max_rows}")
    rows = _read(as_model(model), open_source(data), np.asarray(labels), max_rows)
    train, test = _split(rows.labels, seed)
    views = {"codes": rows.codes, "columns": _View(rows.columns, rows.columns), "pca": _pca(rows, train)}
    return {name: _measured(view, rows, train, test, seed) for name, view in views.items()}


def read_labels(spec: str | Path, source: Source, path: str | None = None) -> npt.NDArray[Any]:
    """(n,) labels: a file with one a row (.npy, .csv, .txt), a column of the data's own file, or the data's own.

    Parameters
    ----------
    spec
        A path, or a column's name; "labels" means those that the source brings along, such as those of ``digits``.
    path
        The file that the source was read from, if it was.

    Raises
    ------
    ValueError
        It is none of these; the message lists what there is.
    """
    file = Path(spec)
    if file.is_file():
        return _labels_of_file(file)
    own = getattr(source, "labels", None)
    if str(spec) == "labels" and own is not None:
        return np.asarray(own)
    columns = _columns_of(Path(path)) if path is not None and Path(path).is_file() else []
    if str(spec) in columns:
        return _column_of(Path(str(path)), str(spec))
    there = ", ".join([*(["labels"] if own is not None else []), *columns][:12]) or "nothing"
    raise ValueError(f"no labels {str(spec)!r}: expected a file (.npy, .csv, .txt), or one of the data's own: {there}")


# ---------------------------------------------------------------------------------------------- measuring


class _View(NamedTuple):
    """One way to describe the rows."""

    values: Rows
    """(n, size)"""
    recon: Rows
    """(n, D_out): what can be told of the rows from the values"""


class _Read(NamedTuple):
    columns: Rows
    target: Rows
    codes: _View
    labels: npt.NDArray[Any]


def _read(model: Autoencoder, source: Source, labels: npt.NDArray[Any], max_rows: int) -> _Read:
    if labels.ndim != 1 or source.n_rows is None or len(labels) != source.n_rows:
        raise ValueError(f"expected one label for each of {source.n_rows} rows, got labels of shape {labels.shape}")
    _check_labels(labels[:max_rows])
    model.layout.check_columns(source.layout.columns)
    parts, n_rows = [], 0
    for batch in source.batches(BATCH, shuffle=False):
        check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
        if batch.x is not batch.x_in:
            check_finite(batch.x, "the target", batch.rows)
        # all in model space: a column a million times as large as the others would be all that neighbours see
        spaces = model.to_model_space(batch.x_in), model.target_to_model_space(batch.x)
        found = (*spaces, model.encode(batch.x_in), model.reconstruct_in_model_space(batch.x_in))
        parts.append([part.flatten(1).cpu().numpy() for part in found])
        n_rows += len(batch.rows)
        if n_rows >= max_rows:
            break
    x, target, codes, recon = (np.concatenate(part)[:max_rows] for part in zip(*parts, strict=True))
    known = labels[: len(x)]
    return _Read(x, target, _View(codes, recon), known.astype(str) if known.dtype == object else known)


def _check_labels(labels: npt.NDArray[Any]) -> None:
    missing = [i for i, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        raise ValueError(
            f"expected a label for every row; {len(missing):,} of {len(labels):,} have none, first row {missing[0]}; "
            "fill it or drop the row"
        )


def _split(labels: npt.NDArray[Any], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers: three quarters to learn from and a quarter to test on, of each class, and at least one in both."""
    classes, number, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        rare = ", ".join(f"{c!s} ({n})" for c, n in zip(classes[:8], counts[:8], strict=True))
        raise ValueError(f"expected labels of two or more classes, each on at least two rows; got {rare:.200}")
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(labels), dtype=bool)
    for c, count in enumerate(counts):
        held_out[generator.permutation(np.flatnonzero(number == c))[: max(1, round(count / 4))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _pca(rows: _Read, train: npt.NDArray[np.int64]) -> _View:
    from sklearn.decomposition import PCA

    size = min(rows.codes.values.shape[1], rows.columns.shape[1], len(train))
    fitted = PCA(size, random_state=0).fit(rows.columns[train])
    values = fitted.transform(rows.columns)
    return _View(values, fitted.inverse_transform(values))


def _measured(
    view: _View, rows: _Read, train: npt.NDArray[np.int64], test: npt.NDArray[np.int64], seed: int
) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import adjusted_rand_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    values, labels = view.values, rows.labels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(values[train], labels[train])
        clusters = KMeans(len(np.unique(labels)), n_init=4, random_state=seed).fit_predict(values)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(train))).fit(values[train], labels[train])
    few = min(TRUST_ROWS, len(values))
    trust = (
        trustworthiness(rows.columns[:few], values[:few], n_neighbors=NEIGHBOURS) if few > 2 * NEIGHBOURS else np.nan
    )
    return {
        "size": values.shape[1],
        "fvu": _fvu(view.recon[test], rows.target[test]),
        "probe_accuracy": float(linear.score(values[test], labels[test])),
        **_sparse_probes(values, labels, train, test),
        "knn_accuracy": float(near.score(values[test], labels[test])),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "trustworthiness": float(trust),
    }


def _sparse_probes(
    values: Rows, labels: npt.NDArray[Any], train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
) -> dict[str, float]:
    """How well each class is told from the others by its best 1, 2 and 5 numbers, and by all; means over classes."""
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(labels[train], return_counts=True)
    # of two classes, telling one is telling the other
    asked = classes[np.argsort(-counts, kind="stable")][: 1 if len(classes) == 2 else MOST_CLASSES]
    found: dict[str, list[float]] = {f"probe_{k}": [] for k in (*FEW, "all")}
    standard = StandardScaler().fit(values[train]).transform(values)
    seen = values[train]
    for c in asked:
        is_class = labels == c
        difference = _mean(seen[is_class[train]]) - _mean(seen[~is_class[train]])
        best = np.argsort(-np.abs(difference), kind="stable")
        for k in (*FEW, "all"):
            chosen = standard if k == "all" else standard[:, best[:k]]
            found[f"probe_{k}"].append(_told_apart(chosen, is_class, train, test))
    return {name: float(np.mean(accuracies)) for name, accuracies in found.items()}


def _mean(values: Rows) -> Rows:
    return np.asarray(values.mean(0, dtype=np.float64))


def _told_apart(
    values: Rows, is_class: npt.NDArray[np.bool_], train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
) -> float:
    """Held-out accuracy of a logistic regression, rows in the class and rows outside of it weighing the same in all."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=1000, class_weight="balanced").fit(values[train], is_class[train])
    right = fitted.predict(values[test]) == is_class[test]
    return float((right[is_class[test]].mean() + right[~is_class[test]].mean()) / 2)


def _fvu(recon: Rows, target: Rows) -> float:
    """NaN where the model's targets are something else than the columns, which no PCA of those gives."""
    if recon.shape != target.shape:
        return float("nan")
    return metrics.fvu(torch.from_numpy(target), torch.from_numpy(recon))


# ---------------------------------------------------------------------------------------------- labels


def _labels_of_file(file: Path) -> npt.NDArray[Any]:
    if file.suffix == ".npy":
        try:
            return np.asarray(np.load(file, allow_pickle=False))
        except ValueError as error:
            raise ValueError(f"cannot read labels from {file}: {error}") from None
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip("\r\n").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"cannot read labels from {file}: expected .npy, or text in UTF-8 with one a line") from None
    if file.suffix in (".csv", ".tsv"):
        lines = lines[1:]  # a table has a header, a list has none
    for delimiter in DELIMITERS:
        counts = {count_cells(line.encode(), delimiter.encode(), 100) for line in lines[:20]}
        if len(counts) == 1 and (n := counts.pop()) > 1:
            raise ValueError(
                f"expected one label a line in {file}, got {n} columns such as {lines[0]!r:.60}; keep the labels alone"
            )
    return np.asarray([line.strip().strip('"') for line in lines])


def _columns_of(path: Path) -> list[str]:
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    if path.suffix.lower() in (".csv", ".tsv"):
        return list(Dialect.of(path, None, None, ".").names)
    return []


def _column_of(path: Path, name: str) -> npt.NDArray[Any]:
    """(n,) values of a column of a table; None, NaN or no text where a cell is empty."""
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        return np.asarray(pq.read_table(path, columns=[name], use_threads=False)[name].to_pylist())
    from pyarrow import csv

    dialect = Dialect.of(path, None, None, ".")  # as the rows themselves are read
    names = [str(i) for i in range(len(dialect.names))]  # real ones may repeat
    column = names[dialect.names.index(name)]
    with path.open("rb") as file:
        file.seek(dialect.offset)
        table = csv.read_csv(
            file,
            csv.ReadOptions(column_names=names, use_threads=False),
            csv.ParseOptions(delimiter=dialect.delimiter.decode(), newlines_in_values=True),
            csv.ConvertOptions(include_columns=[column]),
        )
    return np.asarray(table[column].to_pylist())
