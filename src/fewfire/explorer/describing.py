"""What the page knows of the model, the run and another run, beside the features themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fewfire import metrics, plot
from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.comparison import MEANINGS as COMPARISON_MEANINGS
from fewfire.comparison import stability
from fewfire.contracts import Source
from fewfire.evaluation import METRICS, evaluate, kind_of
from fewfire.runs import Run

__all__ = ["Classes", "about_model", "about_run", "comparison", "density_bins", "labels_of"]

MOST_POINTS = 400
"""of a curve"""
MEASURED_ROWS, MEASURED_LATENTS = 2_000, 1 << 26
"""of a model without a record of its training: rows on which it is measured, fewer where latents are many"""
CURVES = {
    "loss": "Loss",
    "fvu": "Variance unexplained",
    "l0": "Features firing per row",
    "dead": "Dead features",
}
MOST_MATCHED = 4_096
"""features of the larger model, up to which pairs are matched one to one; beyond, each has its nearest"""
N_DENSITY_BINS = 40


def about_model(run: Run, source: Source) -> dict[str, Any]:
    """Names and sizes."""
    model = run.model
    return {
        "name": run.path.resolve().name,
        "data": str(getattr(source, "name", "")) or "the data",
        "kind": kind_of(model),
        "maps": list(model.latent_shape[1:]),
        "n_features": model.latent_shape[0],
        "activation": model.activation.name,
        "network": model.network.name,
        "input_shape": list(model.input_shape),
        "target_shape": list(model.target_shape),
        "version": __version__,
    }


def about_run(run: Run, source: Source) -> dict[str, Any]:
    """Curves, numbers with their meanings, and the configuration."""
    records = run.history()
    curves = [
        {"name": name, "title": title, "line": line, "held_out": held_out}
        for name, title in CURVES.items()
        if (line := _thinned(*plot.curve(records, name))) and len(line["values"]) > 1
        for held_out in [_thinned(*plot.curve(records, f"val_{name}"))]
    ]
    measured = run.provenance.get("summary")
    if not measured:
        rows = min(MEASURED_ROWS, max(1, MEASURED_LATENTS // math.prod(run.model.latent_shape)))
        measured = evaluate(run.model, source, max_rows=rows)
    numbers = [
        {"name": name, "value": measured[name], "meaning": meaning}
        for name, meaning in METRICS.items()
        if measured.get(name) is not None
    ]
    config = run.path / "config.yaml"
    text = config.read_text(encoding="utf-8") if run.config is not None and config.is_file() else None
    return {"curves": curves, "metrics": numbers, "config": text, "steps": run.provenance.get("steps")}


def comparison(model: Autoencoder, other: Run) -> dict[str, Any]:
    """Each feature's partner in another model: one to one up to 4,096 features, else the nearest.

    Raises
    ------
    ValueError
        A decoder is not linear, or the two reconstruct rows of different widths.
    """
    numbers: dict[str, float] = {}
    a, b = (plot.feature_vectors(m) for m in (model, other.model))
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected two models of the same rows; one reconstructs {a.shape[1]} values a row, the other {b.shape[1]}"
        )
    if max(len(a), len(b)) <= MOST_MATCHED:
        pairs = metrics.match(a, b)
        linear = all("linear_decoder" in m.gives for m in (model, other.model))
        numbers = stability(model, other.model) if linear else {}
    else:
        pairs = metrics.best_match(a, b)
    order = pairs.cosine.abs().argsort(descending=True, stable=True)
    meanings = [{"name": n, "value": v, "meaning": COMPARISON_MEANINGS[n]} for n, v in numbers.items()]
    return {
        "name": other.path.resolve().name,
        "metrics": meanings,
        "one_to_one": bool(numbers),
        "own": pairs.a[order].tolist(),
        "other": pairs.b[order].tolist(),
        "cosine": [round(c, 4) for c in pairs.cosine[order].tolist()],
    }


class Classes(NamedTuple):
    """What the source says of its rows; nothing of it was trained on."""

    names: list[str]
    """of at most 20 classes; none where labels are no classes"""
    number: npt.NDArray[np.int64] | None
    """(n,) the class of each row read, -1 for none"""
    counts: list[int]
    """rows of each class"""
    label: Callable[[npt.NDArray[np.int64]], list[str]]
    """row numbers -> a word each, "" for none"""


def labels_of(source: Source, n_rows: int) -> Classes:
    """The labels of the first rows."""
    labels = getattr(source, "labels", None)
    if labels is None:
        return Classes([], None, [], lambda rows: [""] * len(rows))
    values = np.asarray(labels)
    found = plot.classes(values[:n_rows], getattr(source, "classes", ()))
    if found is None:
        return Classes([], None, [], lambda rows: [_word(values[row]) for row in rows])
    names, number = found
    counts = np.bincount(number[number >= 0], minlength=len(names)).tolist()
    return Classes(names, number, counts, lambda rows: [names[c] if c >= 0 else "" for c in number[rows].tolist()])


def density_bins(density: npt.NDArray[np.float64], n_rows: int) -> dict[str, Any]:
    """How many features fire how often, in even steps of the logarithm from one row to all of them."""
    low = math.log10(1 / max(n_rows, 10))
    edges = np.linspace(low, 0, N_DENSITY_BINS + 1)
    fires = density[density > 0]
    counts, _ = np.histogram(np.log10(fires).clip(low, 0), edges)
    return {"low": low, "high": 0.0, "counts": counts.tolist()}


def _thinned(steps: list[int], values: list[float]) -> dict[str, list[Any]]:
    stride = -(-len(steps) // MOST_POINTS) or 1
    return {"steps": steps[::stride], "values": values[::stride]}


def _word(label: Any) -> str:
    text = str(label)
    return "" if text == "nan" else text[:60]
