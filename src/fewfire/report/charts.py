"""Curves and histograms as coordinates, for the template to draw as inline SVG.

The plot area is an SVG stretched to whatever room there is, with lines that keep their width; the labels are HTML at
percentages of it. So text has the same size on a phone and on a wall, and colours follow light and dark mode.
Everything is in percent from the left and from the top.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fewfire import plot

__all__ = ["Bar", "Chart", "curve_chart", "rate_chart"]

MAX_POINTS = 600
MAX_DOTS = 40
TOP, BOTTOM = 4.0, 100.0
"""where the highest value and the axis lie"""


@dataclass(frozen=True)
class Bar:
    left: float
    width: float
    height: float
    title: str
    dead: bool = False
    label: str = ""


@dataclass(frozen=True)
class Chart:
    title: str
    note: str
    line: str = ""
    """points of a polyline"""
    dots: list[tuple[float, float]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)


def curve_chart(records: Sequence[Mapping[str, Any]], name: str, title: str) -> Chart | None:
    """A logged value over the steps, and its held-out values as dots. None when there is nothing to see."""
    steps, values = _thinned(*plot.curve(records, name))
    val_steps, val_values = _thinned(*plot.curve(records, f"val_{name}"), MAX_DOTS)
    everything = values + val_values
    if len(set(everything)) < 2:  # nothing, or a constant such as the l0 of TopK
        return None
    logarithmic = plot.spans_decades(everything)
    ticks = (
        log_ticks(min(everything), max(everything))
        if logarithmic
        else even_ticks(min(0.0, *everything), max(everything))
    )
    low, high = min(ticks[0], *everything), max(ticks[-1], *everything)
    last = max(steps + val_steps)

    def place(step: int, value: float) -> tuple[float, float]:
        return round(100 * step / last, 2), _y(value, low, high, logarithmic)

    latest = [f"ends at {short(values[-1])}"] if values else []
    latest += [f"held out (dots) at {short(val_values[-1])}"] if val_values else []
    return Chart(
        title,
        ", ".join(latest),
        line=" ".join(f"{x},{y}" for x, y in map(place, steps, values)),
        dots=list(map(place, val_steps, val_values)),
        x_ticks=[(round(100 * t / last, 2), f"{t:,.0f}") for t in even_ticks(0, last, 4) if t <= last],
        y_ticks=[(_y(t, low, high, logarithmic), short(t)) for t in ticks],
    )


def rate_chart(rates: Tensor) -> Chart:
    """(L,) firing rates -> a histogram on a logarithmic scale, the dead in a bar of their own on the left."""
    counts, edges, n_dead = plot.rate_histogram(rates)
    slots = len(counts) + (3 if n_dead else 0)  # the bar of the dead takes two places and keeps one of distance
    width, first = 100 / slots, slots - len(counts)
    tallest = max(*counts, n_dead)
    ticks = [t for t in even_ticks(0, tallest, 4) if t == int(t)]
    top = max(tallest, ticks[-1])
    share = (100 - TOP) / top
    bars = [
        Bar((first + i) * width, width, count * share, _bar_title(count, edges[i], edges[i + 1]))
        for i, count in enumerate(counts)
        if count
    ]
    decades = range(round(edges[0]), 1)
    x_ticks = [(100 + d * (len(counts) / -edges[0]) * width, plot.rate_label(d)) for d in decades]
    if n_dead:
        bars.insert(0, Bar(0, 2 * width, n_dead * share, f"{n_dead:,} features never fired", True, f"{n_dead:,}"))
        x_ticks = [(width, "never"), *x_ticks]
    return Chart("", "", bars=bars, x_ticks=x_ticks, y_ticks=[(_y(t, 0, top, False), f"{t:,.0f}") for t in ticks])


def even_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers that cover low to high: steps of 1, 2 or 5 times a power of 10."""
    rough = (high - low) / about or 1.0
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough * 0.999)
    return [round(i * step, 12) for i in range(math.floor(low / step), math.ceil(high / step - 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of 10 inside the range; powers alone, or every few, when there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 2, 5), (1,)):
        inside = [m * 10.0**d for d in decades for m in marks if low <= m * 10.0**d <= high]
        if len(inside) <= 6:
            break
    return inside[:: math.ceil(len(inside) / 6)] or [low, high]


def short(value: float) -> str:
    """Three significant digits, without an exponent where a person can do without."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        text = f"{value:,.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        text = f"{value:.2e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return "−" + text[1:] if text.startswith("-") else text


def _y(value: float, low: float, high: float, logarithmic: bool) -> float:
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    share = (value - low) / (high - low) if high > low else 0.5
    return round(BOTTOM - share * (BOTTOM - TOP), 2)


def _thinned(steps: list[int], values: list[float], most: int = MAX_POINTS) -> tuple[list[int], list[float]]:
    """At most ``most`` of them, the last always kept: more cannot be seen."""
    every = math.ceil(len(steps) / most) or 1
    keep = range(len(steps) - 1, -1, -every)[::-1]
    return [steps[i] for i in keep], [values[i] for i in keep]


def _bar_title(count: int, low: float, high: float) -> str:
    fire = "feature fires" if count == 1 else "features fire"
    return f"{count:,} {fire} on {100 * 10**low:.2g}% to {100 * 10**high:.2g}% of the rows"
