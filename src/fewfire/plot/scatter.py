"""Rows as dots in a plane, coloured by their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.plot.drawing import STYLE, axes, plain_text, title
from fewfire.rows import as_storage, column_names, is_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_CLASSES", "MAX_DOTS", "alike", "classes", "in_a_plane", "scatter"]

Points = npt.NDArray[np.float64]

MAX_CLASSES = 20
"""colours beyond this cannot be told apart"""
MAX_DOTS = 2_000
LEAST_ROWS = 100
"""t-SNE asks how far about 90 neighbours are"""
DIRECTIONS = 50
"""principal components that t-SNE is given at most, so that wide rows take no longer"""
NEIGHBOURS = 5


def scatter(
    model: Autoencoder | HasModel,
    x: Tensor | npt.ArrayLike,
    labels: npt.ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The codes of rows ``x`` (B, *input shape), in data space, as dots: near codes are near dots.

    Laid out by t-SNE, or by PCA of fewer than 100 rows and of codes of one or two latents (``in_a_plane``). With
    ``labels``, one a row, a colour for each class. Of more than 2,000 rows the first 2,000 are drawn.

    Raises
    ------
    ValueError
        The labels are not one a row, or of fewer than 2 or more than 20 classes.
    """
    model = as_model(model)
    model.layout.check_columns(column_names(x))
    rows = as_storage(x, "x")
    n_rows, first = rows.shape[0], rows[:MAX_DOTS]
    codes = model.encode(first.toarray() if hasattr(first, "toarray") else first)
    names, number = ["rows"], np.zeros(len(codes), dtype=np.int64)
    if labels is not None:
        values = np.asarray(labels)
        found = classes(values[:MAX_DOTS]) if values.shape == (n_rows,) else None
        if found is None:
            raise ValueError(
                f"expected a label for each of {n_rows:,} rows, of 2 to {MAX_CLASSES} classes; "
                f"got labels of shape {np.shape(labels)}"
            )
        names, number = found
    points, method = in_a_plane(codes.flatten(1).cpu().numpy())
    ax = axes(ax, (6.4, 5.6))
    for c, name in enumerate(names):
        across, up = points[number == c].T
        ax.scatter(across, up, s=9, color=STYLE["classes"][c], linewidths=0, alpha=0.85, label=plain_text(name))
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_axis_off()  # of such a layout only nearness means something
    if labels is not None:
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.2, handletextpad=0.2,
                  fontsize=STYLE["tick_size"], labelcolor=STYLE["ink"])  # fmt: skip
    title(ax, f"codes of {(number >= 0).sum():,} rows ({method})")
    return ax


def in_a_plane(values: npt.ArrayLike, seed: int = 0) -> tuple[Points, str]:
    """(n, D) -> points (n, 2), near where rows are near, and the method: "t-SNE" (van der Maaten & Hinton 2008).

    "PCA" where there are fewer than 100 rows, or no more than two directions to show. The same each time: t-SNE starts
    from PCA, and runs in one thread, because several add up in any order. 2,000 rows take some five seconds.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    rows = np.asarray(values, dtype=np.float64)
    directions = min(DIRECTIONS, *rows.shape)
    points = PCA(directions, random_state=seed).fit_transform(rows - rows.mean(0)) if rows.std(0).any() else rows * 0
    left_over = np.square(points[:, 2:]).sum()
    if len(rows) < LEAST_ROWS or left_over <= 1e-9 * np.square(points).sum():
        return np.pad(points[:, :2], ((0, 0), (0, max(0, 2 - points.shape[1])))), "PCA"
    with threadpool_limits(1):
        layout = TSNE(2, init="pca", max_iter=500, random_state=seed).fit_transform(points)
    return np.asarray(layout, dtype=np.float64), "t-SNE"


def classes(labels: npt.ArrayLike, names: Sequence[str] = ()) -> tuple[list[str], npt.NDArray[np.int64]] | None:
    """(n,) labels, numbers or text -> names of the classes in order, and the (n,) class of each row, -1 without one.

    ``names``: of classes that are numbered. None, where labels are not one a row, or not of 2 to 20 classes.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        return None
    cells = [None if is_missing(v) else v for v in values.tolist()]
    found = sorted({v for v in cells if v is not None}, key=_order)
    if not 2 <= len(found) <= MAX_CLASSES:
        return None
    place = {v: i for i, v in enumerate(found)}
    return [_name(v, names) for v in found], np.array([-1 if v is None else place[v] for v in cells])


def alike(points: npt.ArrayLike, number: npt.NDArray[np.int64]) -> float:
    """Share of the five nearest points that are of the point's own class, over all points. (n, D), (n,) -> 1."""
    p = torch.as_tensor(np.asarray(points))
    distance = torch.cdist(p, p).fill_diagonal_(torch.inf)
    near = distance.topk(min(NEIGHBOURS, len(p) - 1), largest=False).indices.numpy()
    return float((number[near] == number[:, None]).mean())


def _order(label: Any) -> tuple[bool, float, str]:
    """Numbers by size, then text by letters."""
    number = isinstance(label, int | float)
    return (False, float(label), "") if number else (True, 0.0, str(label))


def _name(label: Any, names: Sequence[str]) -> str:
    if isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return f"{label:g}" if isinstance(label, float) else str(label)
