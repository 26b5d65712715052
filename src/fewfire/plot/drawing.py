"""The house style, and the few strokes that every picture is made of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["STYLE", "axes", "dress", "mosaic", "plain_text", "rgb", "show", "spacing", "title"]

STYLE: dict[str, Any] = {
    # Okabe & Ito 2008: told apart with any kind of colour vision, and in grey.
    "cycle": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
    # the same six, and more to tell up to 20 labels apart, on white and on black
    "classes": (
        "#0072b2",
        "#d55e00",
        "#009e73",
        "#cc79a7",
        "#56b4e9",
        "#e69f00",
        "#7b52ab",
        "#8a6d3b",
        "#7d8590",
        "#a3a500",
        "#e0556a",
        "#2f7d7e",
        "#b58ae0",
        "#5b8c2a",
        "#c2410c",
        "#4763c9",
        "#d19c6a",
        "#1fb5a8",
        "#a8327d",
        "#94a9c9",
    ),
    "positive": "#d55e00",
    "negative": "#0072b2",
    "diverging": "PuOr_r",
    "ink": "#23272e",
    "muted": "#6b7280",
    "faint": "#e6e8eb",
    "title_size": 13,
    "label_size": 11,
    "tick_size": 10,
    "line_width": 1.8,
    "gap": 0.14,  # between tiles, as a share of a tile's side
}
"""How everything here looks. Change an entry to change every picture."""


def axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # here, because it takes longer to import than all of fewfire

    return plt.subplots(figsize=size, layout="constrained")[1]


def mosaic(pictures: npt.NDArray[np.float64], columns: int) -> npt.NDArray[np.float64]:
    """(N, h, w) or (N, h, w, 3) -> one RGBA picture, tiles in reading order, transparent gaps between them."""
    count, h, w = pictures.shape[:3]
    rgb = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=-1)
    zoom, gap = spacing(h, w)
    rgb = rgb.repeat(zoom, axis=1).repeat(zoom, axis=2)
    h, w = h * zoom, w * zoom
    lines = max(1, math.ceil(count / columns))
    picture = np.zeros((lines * (h + gap) - gap, columns * (w + gap) - gap, 4))
    for i, tile in enumerate(rgb):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        picture[top : top + h, left : left + w, :3] = tile
        picture[top : top + h, left : left + w, 3] = 1
    return picture


def spacing(h: int, w: int) -> tuple[int, int]:
    """Pixels of a mosaic for a pixel of a tile, and for a gap: small tiles are enlarged, so that gaps are thin."""
    zoom = max(1, round(32 / max(h, w)))
    return zoom, max(1, round(STYLE["gap"] * min(h, w) * zoom))


def show(ax: Axes, picture: npt.NDArray[np.float64]) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_axis_off()


def dress(ax: Axes, grid: Literal["x", "y"] | None) -> None:
    """The house style, set on this Axes alone: no rcParams are touched."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(STYLE["muted"])
        ax.spines[side].set_linewidth(0.8)
    ax.tick_params(colors=STYLE["muted"], labelcolor=STYLE["ink"], labelsize=STYLE["tick_size"], which="both")
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set_fontsize(STYLE["label_size"])
        label.set_color(STYLE["ink"])
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color=STYLE["faint"], linewidth=0.8)


def title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=STYLE["title_size"], color=STYLE["ink"], pad=8)


def plain_text(name: str) -> str:
    """A name from data as matplotlib should draw it: no $formulas$, one line, not endless."""
    line = " ".join(name.split())
    line = line if len(line) <= 32 else line[:31] + "…"
    return line.replace("\\", "\\\\").replace("$", r"\$") if "$" in line else line


def rgb(colour: str) -> npt.NDArray[np.float64]:
    """ "#d55e00" -> three numbers from 0 to 1."""
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
