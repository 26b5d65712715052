"""What the codes are good for: a classifier, neighbours, clusters and neighbourhoods, beside the columns and PCA."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.rows import check_finite
from fewfire.sources import open_source

__all__ = ["MEANINGS", "probe", "read_labels"]

Rows = npt.NDArray[np.floating[Any]]

BATCH = 4096
NEIGHBOURS = 5
TRUST_ROWS = 2_000
"""rows whose neighbourhoods are compared: the cost grows with their square"""

MEANINGS = {
    "probe_accuracy": "logistic regression on a quarter of the rows, held out",
    "knn_accuracy": "vote of the 5 nearest rows, same split",
    "ari": "k-means clusters beside the labels: 1 the same, 0 chance",
    "trustworthiness": "near rows that were near in the columns too: 1 all",
}


def probe(
    model: Autoencoder, data: Any, labels: npt.ArrayLike, *, max_rows: int = 20_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """How much of the labels is in the codes, beside the columns themselves and PCA of the same size.

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
        The labels do not fit the rows, or there are too few of a class.
    """
    columns, codes, labels = _rows_and_codes(model, open_source(data), np.asarray(labels), max_rows)
    train, test = _split(labels, seed)
    views = {"codes": codes, "columns": columns, "pca": _pca(columns, train, codes.shape[1])}
    return {name: _measured(view, columns, labels, train, test, seed) for name, view in views.items()}


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


def _rows_and_codes(
    model: Autoencoder, source: Source, labels: npt.NDArray[Any], max_rows: int
) -> tuple[Rows, Rows, npt.NDArray[Any]]:
    if labels.ndim != 1 or source.n_rows is None or len(labels) != source.n_rows:
        raise ValueError(f"expected one label for each of {source.n_rows} rows, got labels of shape {labels.shape}")
    model.layout.check_columns(source.layout.columns)
    columns, codes, n_rows = [], [], 0
    for batch in source.batches(BATCH, shuffle=False):
        check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
        columns.append(batch.x_in.flatten(1).numpy())
        codes.append(model.encode(batch.x_in).flatten(1).cpu().numpy())
        n_rows += len(batch.rows)
        if n_rows >= max_rows:
            break
    x, z = (np.concatenate(parts)[:max_rows] for parts in (columns, codes))
    return x, z, labels[: len(x)]


def _split(labels: npt.NDArray[Any], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers: three quarters to learn from and a quarter to test on, each class in both."""
    from sklearn.model_selection import train_test_split

    classes, counts = np.unique(labels, return_counts=True)
    if len(classes) < 2 or counts.min() < 2:
        rare = ", ".join(f"{c!s} ({n})" for c, n in zip(classes[:8], counts[:8], strict=True))
        raise ValueError(f"expected labels of two or more classes, each on at least two rows; got {rare:.200}")
    held_out = max(len(classes), round(len(labels) / 4))
    train, test = train_test_split(np.arange(len(labels)), test_size=held_out, random_state=seed, stratify=labels)
    return train, test


def _pca(columns: Rows, train: npt.NDArray[np.int64], size: int) -> Rows:
    from sklearn.decomposition import PCA

    size = min(size, columns.shape[1], len(train))
    fitted: Rows = PCA(size, random_state=0).fit(columns[train]).transform(columns)
    return fitted


def _measured(
    view: Rows,
    columns: Rows,
    labels: npt.NDArray[Any],
    train: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    seed: int,
) -> dict[str, float]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.manifold import trustworthiness
    from sklearn.metrics import adjusted_rand_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(view[train], labels[train])
        clusters = KMeans(len(np.unique(labels)), n_init=4, random_state=seed).fit_predict(view)
    near = KNeighborsClassifier(min(NEIGHBOURS, len(train))).fit(view[train], labels[train])
    few = min(TRUST_ROWS, len(view))
    trust = trustworthiness(columns[:few], view[:few], n_neighbors=NEIGHBOURS) if few > 2 * NEIGHBOURS else np.nan
    return {
        "size": view.shape[1],
        "probe_accuracy": float(linear.score(view[test], labels[test])),
        "knn_accuracy": float(near.score(view[test], labels[test])),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "trustworthiness": float(trust),
    }


# ---------------------------------------------------------------------------------------------- labels


def _labels_of_file(file: Path) -> npt.NDArray[Any]:
    if file.suffix == ".npy":
        try:
            return np.asarray(np.load(file, allow_pickle=False))
        except ValueError as error:
            raise ValueError(f"cannot read labels from {file}: {error}") from None
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    values = [line.strip().strip('"') for line in lines if line.strip()]
    if file.suffix == ".csv":
        values = values[1:]  # a table has a header, a list has none
    return np.asarray(values)


def _columns_of(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(path).names)
    if path.suffix == ".csv":
        import csv

        with path.open(newline="", encoding="utf-8-sig") as file:
            return next(csv.reader(file), [])
    return []


def _column_of(path: Path, name: str) -> npt.NDArray[Any]:
    table: Mapping[str, Any]
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path, columns=[name])
    else:
        from pyarrow import csv

        table = csv.read_csv(path, convert_options=csv.ConvertOptions(include_columns=[name]))
    return np.asarray(table[name].to_pylist())
