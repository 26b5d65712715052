"""What happened while training, and how often features fire."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import as_model
from fewfire.evaluation import Evaluation
from fewfire.metrics import density_histogram
from fewfire.plot.drawing import STYLE, axes, dress
from fewfire.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEAD_BAR = 0.8  # width, in bins


class HasHistory(Protocol):
    """A Run."""

    def history(self) -> list[dict[str, Any]]: ...


def history(
    run: str | os.PathLike[str] | HasHistory | Sequence[Mapping[str, Any]],
    ax: Axes | None = None,
    fields: Sequence[str] = ("loss", "fvu"),
) -> Axes:
    """What was logged while training: lines, and dots for held-out rows (``val_loss`` beside ``loss``).

    The scale is logarithmic when everything drawn is positive and spans more than a factor of 10.

    Parameters
    ----------
    run
        A run folder, its ``metrics.jsonl``, a Run, a fitted estimator, or the records themselves (what ``Trainer.fit``
        returns).
    fields
        Names of logged values; those that were not logged are left out.

    Raises
    ------
    ValueError
        None of the fields was logged; the message says what was.
    """
    records = _records(run)
    drawn = [(field, *curve(records, field), *curve(records, f"val_{field}")) for field in fields]
    drawn = [line for line in drawn if line[1] or line[3]]
    if not drawn:
        logged = sorted({key for r in records for key, v in r.items() if _is_number(v)} - {"step"})
        raise ValueError(f"none of {', '.join(fields)} was logged; there is: {', '.join(logged) or 'nothing'}")
    ax = axes(ax, (6.4, 3.8))
    for (name, steps, values, val_steps, val_values), colour in zip(drawn, _colours(len(drawn)), strict=True):
        if steps:
            ax.plot(steps, values, color=colour, linewidth=STYLE["line_width"], label=name)
        if val_steps:
            ax.plot(val_steps, val_values, "o", color=colour, markersize=4, markeredgecolor="white",
                    markeredgewidth=0.7, label=f"{name}, held out")  # fmt: skip
    everything = [v for line in drawn for v in (*line[2], *line[4])]
    if spans_decades(everything):
        ax.set_yscale("log")
    dress(ax, grid="y")
    ax.set_xlabel("step")
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize=STYLE["tick_size"], labelcolor=STYLE["ink"])
    return ax


def curve(records: Sequence[Mapping[str, Any]], field: str) -> tuple[list[int], list[float]]:
    """Steps and values of one logged name; records without a number under it are left out."""
    pairs = [(r["step"], float(r[field])) for r in records if _is_number(r.get(field))]
    return [step for step, _ in pairs], [value for _, value in pairs]


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic scale shows more than a linear one."""
    return min(values) > 0 and max(values) > 10 * min(values)


def _records(run: Any) -> Sequence[Mapping[str, Any]]:
    if isinstance(run, str | os.PathLike):
        return read_metrics(run)
    if hasattr(run, "history_"):
        return list(run.history_)
    if not hasattr(run, "history") and not isinstance(run, Iterable):
        as_model(run)  # an estimator that was not fitted says so itself
    return run.history() if hasattr(run, "history") else list(run)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _colours(n: int) -> list[str]:
    cycle = STYLE["cycle"]
    return [cycle[i % len(cycle)] for i in range(n)]


# -------------------------------------------------------------------------------------------------- firing rates


def density(density: Tensor | npt.ArrayLike | Evaluation, ax: Axes | None = None) -> Axes:
    """How often features fire: a histogram of rates on a logarithmic scale. The dead have a bar of their own.

    ``density``: (L,) fractions of rows on which each feature fired, or an ``Evaluation``.

    Raises
    ------
    ValueError
        A rate is not between 0 and 1, or there is none.
    """
    if hasattr(density, "fit") or isinstance(density, torch.nn.Module):
        raise TypeError(
            f"how often features fire is told by rows, not by a {type(density).__name__} alone; give their rates, such "
            "as (codes != 0).mean(0) of encoded rows, or an Evaluation"
        )
    rates = density.density if isinstance(density, Evaluation) else torch.as_tensor(np.asarray(density))
    counts, edges, n_dead = density_histogram(rates)
    ax = axes(ax, (6.4, 3.6))
    width = edges[1] - edges[0]
    ax.bar(edges[:-1], counts, width=0.92 * width, align="edge", color=STYLE["cycle"][0])
    marks: dict[float, str] = {}
    if n_dead:
        place = edges[0] - 2 * width
        bar = ax.bar([place], [n_dead], width=DEAD_BAR * width, color=STYLE["positive"])
        ax.bar_label(bar, [f"{n_dead:,}"], color=STYLE["ink"], fontsize=STYLE["tick_size"], padding=2)
        marks[place] = "never"
    # The lowest decade's label would run into "never".
    marks |= {float(d): rate_label(d) for d in range(round(edges[0]) + bool(n_dead), 1)}
    ax.set_xticks(list(marks), list(marks.values()))
    ax.set_xlim(edges[0] - (3.2 if n_dead else 0.6) * width, 0.6 * width)
    dress(ax, grid="y")
    ax.set_xlabel("share of rows on which a feature fires")
    ax.set_ylabel("features")
    ax.locator_params(axis="y", integer=True)
    return ax


def rate_label(decade: int) -> str:
    """-2 -> "1%"."""
    return f"{100 * 10.0**decade:.12g}%"
