"""Rows as dots, coloured by the labels that the data bring along: by their codes, and by their columns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fewfire import plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.evaluation import finite_rows
from fewfire.report import words

__all__ = ["Cloud", "Clouds", "clouds"]

BATCH = 256
MAX_VALUES = 1 << 26
"""of codes or of columns: 256 MiB in float32, whatever the width of a row"""
ROUNDS = 6
"""dots are drawn in so many rounds of all classes, so that none lies on top of the others"""
NAMED_ABOVE = 0.6
"""share of near dots alike from which a class has a place in the picture where its name can stand"""
LONGEST_NAME = 10
"""letters; where a name has more, the legend alone says which colour is which"""
MARGIN = 4.0


@dataclass(frozen=True)
class Cloud:
    """One picture, in a square of 100 by 100."""

    title: str
    note: str
    dots: list[tuple[str, str]]
    """(colour, points of one class), in the order in which they are drawn"""
    names: list[tuple[str, float, float]]
    """(class, left, top), where it is thickest"""
    alike: float
    """share of the five nearest dots that are of the dot's own class"""


@dataclass(frozen=True)
class Clouds:
    pictures: list[Cloud]
    legend: list[tuple[str, str, int]]
    """(class, colour, rows drawn)"""
    method: str
    """how dots were placed"""
    n_rows: int
    says: str
    """what is seen, in a sentence"""


def clouds(model: Autoencoder, source: Source) -> Clouds | None:
    """None where the source has no labels, or not of 2 to 20 classes."""
    labels = getattr(source, "labels", None)
    if labels is None or source.n_rows is None:
        return None
    codes, columns, rows = _drawn_at_random(model, source)
    found = plot.classes(np.asarray(labels)[rows], getattr(source, "classes", ()))
    if found is None or not np.isfinite(codes).all():
        return None
    names, number = found
    known = number >= 0
    (by_code, how), (by_column, how_columns) = (plot.in_a_plane(part[known]) for part in (codes, columns))
    if how != how_columns:
        how = f"{how} (first) and {how_columns} (second)"
    number = number[known]
    pictures = [
        _cloud(f"By {words.count(codes.shape[1], 'latent')}", by_code, number, names),
        _cloud(f"By {words.count(columns.shape[1], 'column')}", _turned(by_column, by_code), number, names),
    ]
    counts = np.bincount(number, minlength=len(names))
    legend = [(name, plot.STYLE["classes"][c], int(counts[c])) for c, name in enumerate(names)]
    return Clouds(pictures, legend, how, len(number), _says(pictures[0], pictures[1], counts))


def _drawn_at_random(
    model: Autoencoder, source: Source
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Codes, columns as the model is given them, and numbers of up to 2,000 rows: files may be sorted by label."""
    widest = max(math.prod(model.latent_shape), math.prod(model.input_shape))
    most = min(plot.MAX_DOTS, max(2, MAX_VALUES // widest))
    parts, n_rows = [], 0
    for batch in source.batches(BATCH, shuffle=True):
        batch = finite_rows(batch)
        found = (model.encode(batch.x_in), model.to_model_space(batch.x_in.to(model.device)))
        parts.append([*(part.flatten(1).float().cpu().numpy() for part in found), batch.rows.numpy()])
        n_rows += len(batch.rows)
        if n_rows >= most:
            break
    codes, columns, rows = (np.concatenate(part)[:most] for part in zip(*parts, strict=True))
    return codes, columns, rows


def _turned(points: npt.NDArray[np.float64], like: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The points turned and mirrored until rows lie as near as can be to where they do in the other picture."""
    left, _, right = np.linalg.svd((points - points.mean(0)).T @ (like - like.mean(0)))
    return np.asarray((points - points.mean(0)) @ left @ right)


def _cloud(name: str, points: npt.NDArray[np.float64], number: npt.NDArray[np.int64], names: list[str]) -> Cloud:
    low, high = points.min(0), points.max(0)
    size = float((high - low).max()) or 1.0
    placed = 50 + (points - (low + high) / 2) / size * (100 - 2 * MARGIN)  # one scale for both directions
    share = plot.alike(placed, number)
    dots = [
        (plot.STYLE["classes"][c], "".join(f"M{x:.1f} {y:.1f}h0" for x, y in placed[part][number[part] == c]))
        for part in (slice(i, None, ROUNDS) for i in range(ROUNDS))
        for c in range(len(names))
    ]
    fit = share > NAMED_ABOVE and max(map(len, names)) <= LONGEST_NAME
    written = list(_names(placed, number, names)) if fit else []
    note = f"{words.percent(share)} of near dots alike"
    return Cloud(name, note, [dot for dot in dots if dot[1]], written, share)


def _names(
    points: npt.NDArray[np.float64], number: npt.NDArray[np.int64], names: list[str]
) -> Iterator[tuple[str, float, float]]:
    """Each class at the dot that has most of its class about it."""
    for c, name in enumerate(names):
        own = points[number == c]
        if len(own):
            apart = np.linalg.norm(own[:, None] - own, axis=2)
            x, y = own[np.exp(-((apart / 6) ** 2)).sum(1).argmax()]
            half = 1.4 * len(name)  # of its width, so that it stays inside
            yield name, round(min(max(float(x), half), 100 - half), 1), round(float(y), 1)


def _says(codes: Cloud, columns: Cloud, counts: npt.NDArray[np.int64]) -> str:
    share = counts / counts.sum()
    chance = words.percent(float(share @ share))
    seen = words.percent(codes.alike)
    beside = words.percent(columns.alike)
    return (
        f"Of the five dots nearest to a dot, {seen} bear its label among the codes and {beside} among the columns; "
        f"by chance it would be {chance}."
    )
