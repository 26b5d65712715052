"""Pictures for notebooks: matplotlib Axes, drawn where you say.

Every function takes ``ax`` and returns the Axes it drew on. With ``ax=None`` it makes a figure of its own through
pyplot, so that a notebook shows it; with an ``ax`` it leaves pyplot alone. Nothing is shown, saved or configured.

    ff.plot.filters(model)                     what each feature of images looks like
    ff.plot.top_columns(model, 7)              which columns of a table a feature is about
    ff.plot.history("run/")                    loss and unexplained variance while training
    ff.plot.density(evaluation)                how often features fire
    ff.plot.reconstructions(model, x)          rows and what the model makes of them

The numbers behind the pictures are functions as well (``feature_vectors``, ``tiles``, ``strongest_columns``, ``curve``):
the HTML report draws the same ones.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Layout
from fewfire.evaluate import Evaluation
from fewfire.tracking import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "STYLE",
    "curve",
    "density",
    "feature_vectors",
    "filters",
    "history",
    "reconstructions",
    "strongest_columns",
    "tiles",
    "top_columns",
]

STYLE: dict[str, Any] = {
    # Okabe & Ito 2008: told apart with any kind of colour vision, and in grey.
    "cycle": ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"),
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

MAX_TILES = 400
DEAD_BAR = 0.8  # width, in bins

Weights: TypeAlias = Literal["decoder", "encoder"]
Order: TypeAlias = Sequence[int] | Sequence[float] | npt.NDArray[Any] | Tensor | Evaluation


class HasHistory(Protocol):
    """A Run."""

    def history(self) -> list[dict[str, Any]]: ...


# ------------------------------------------------------------------------------------ what features look like


def filters(
    model: Autoencoder,
    ax: Axes | None = None,
    *,
    n: int | None = None,
    order: Order | None = None,
    columns: int | None = None,
    weights: Weights = "decoder",
) -> Axes:
    """The features of images as a grid of images, in reading order.

    Each tile has a scale of its own, symmetric about 0: mid-grey is 0, white the largest absolute weight. Tiles are
    drawn in model space, after preprocessing: with whitening, they are patterns of whitened pixels.

    Parameters
    ----------
    n
        How many tiles; None: all, at most 400.
    order
        Feature numbers (whole numbers), a score per feature (L, floats; the highest first) or an ``Evaluation`` (the
        most used first). None: the smoothest first; noise, such as features never used, comes last.
    columns
        Tiles per line; None: about square.
    weights
        "decoder": what a feature writes, row j of W_dec. "encoder": what a unit responds to most among inputs of
        norm 1, ``W_j / ||W_j||``, the picture of the textbook (Ng 2011, CS294A, section 4). Mid-grey is then the
        tile's mean, which rows without a mean cannot excite, and which would hide the pattern.

    Raises
    ------
    ValueError
        The rows are not images, or the network has no such weight per feature.
    """
    if model.layout.kind != "image":
        raise ValueError(
            "filters draws images and this model's rows are a table; draw plot.top_columns(model, feature)"
        )
    vectors = _as_wide_as(feature_vectors(model, weights), model.layout)
    chosen = _ranking(vectors, model.layout, order)[: MAX_TILES if n is None else n]
    pictures = filter_tiles(vectors[chosen], model.layout, weights)
    columns = min(len(pictures), columns or math.ceil(math.sqrt(len(pictures)))) or 1
    lines = math.ceil(len(pictures) / columns)
    ax = _axes(ax, (min(9.0, 0.55 * columns + 0.3), min(9.0, 0.55 * lines + 0.6)))
    _show(ax, _mosaic(pictures, columns))
    shown = f"{len(pictures):,}" if len(pictures) == model.n_latents else f"{len(pictures):,} of {model.n_latents:,}"
    _title(ax, f"{shown} features")
    return ax


def top_columns(
    model: Autoencoder,
    feature: int | Sequence[int],
    ax: Axes | None = None,
    *,
    n: int = 8,
    weights: Weights = "decoder",
) -> Axes:
    """The columns of a table that one feature, or each of several, is about: bars to the right raise, to the left lower.

    Weights are those of model space: with ``preprocess="standardize"`` they are in standard deviations of the column
    for an activation of 1. ``n`` is the number of columns per feature, strongest first.

    Raises
    ------
    ValueError
        The rows are images, the network has no such weight per feature, or there is no such feature.
    """
    if model.layout.kind != "table":
        raise ValueError("top_columns draws tables and this model's rows are images; draw plot.filters(model)")
    features = [feature] if isinstance(feature, int) else [int(f) for f in feature]
    vectors = feature_vectors(model, weights)
    for f in features:
        if not 0 <= f < len(vectors):
            raise ValueError(f"expected features from 0 to {len(vectors) - 1}; got {f}")
    groups = [strongest_columns(vectors[f], model.layout, n) for f in features]
    ax = _axes(ax, (6.4, 0.6 + 0.3 * sum(len(group) + 1 for group in groups)))
    marks: list[tuple[float, str]] = []
    y = 0.0
    for f, group in zip(features, groups, strict=True):
        if len(features) > 1:  # a line of its own names the feature
            ax.text(0.0, y, f"feature {f}", transform=ax.get_yaxis_transform(), va="center",
                    fontsize=STYLE["label_size"], fontweight="bold", color=STYLE["ink"])  # fmt: skip
            y += 1
        places = [y + i for i in range(len(group))]
        values = [value for _, value in group]
        ax.barh(places, values, height=0.62, color=[STYLE["positive" if v > 0 else "negative"] for v in values])
        marks += [(place, _plain_text(name)) for place, (name, _) in zip(places, group, strict=True)]
        y += len(group) + 0.5
    ax.set_yticks([place for place, _ in marks], [name for _, name in marks])
    ax.set_ylim(y - 0.4, -0.9)
    _dress(ax, grid="x")
    ax.axvline(0, color=STYLE["ink"], linewidth=0.8)
    ax.set_xlabel(f"{weights} weight")
    _title(ax, f"feature {features[0]}" if len(features) == 1 else "strongest columns")
    return ax


def feature_vectors(model: Autoencoder, weights: Weights = "decoder") -> Tensor:
    """(L, D) in model space: the decoder's rows, or the encoder's at norm 1.

    Raises
    ------
    ValueError
        The network has no one such row per latent.
    """
    if weights not in ("decoder", "encoder"):
        raise ValueError(f"expected weights 'decoder' or 'encoder'; got {weights!r}")
    matrix = getattr(model.decoder if weights == "decoder" else model.encoder, f"W_{weights[:3]}", None)
    if not isinstance(matrix, Tensor) or len(matrix) != model.n_latents:
        raise ValueError(
            f"network {model.network.name!r} with activation {model.activation.name!r} has no {weights} weight "
            "per feature to draw; draw rows that make a feature fire, or plot.reconstructions(model, x)"
        )
    width = math.prod(model.target_shape if weights == "decoder" else model.input_shape)
    vectors = matrix.detach().float().cpu().reshape(model.n_latents, width)
    if weights == "encoder":
        vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return vectors


def strongest_columns(vector: Tensor, layout: Layout, n: int) -> list[tuple[str, float]]:
    """(D,) -> the n columns of largest absolute value, by name, strongest first; zeros are left out."""
    top = vector.abs().topk(min(n, len(vector))).indices.tolist()
    return [(column_name(layout, i), float(vector[i])) for i in top if vector[i] != 0]


def column_name(layout: Layout, i: int) -> str:
    return layout.columns[i] if i < len(layout.columns) else f"column {i}"


def tiles(
    rows: Tensor, layout: Layout, *, symmetric: bool = False, limits: tuple[Tensor, Tensor] | None = None
) -> npt.NDArray[np.float64]:
    """Rows as pictures: (N, D) -> (N, h, w), or (N, h, w, 3) for colour, from 0 (black) to 1 (white).

    Each picture has its own scale: from its lowest to its highest value, or ``limits`` (N,) and (N,); with
    ``symmetric``, from minus to plus its largest absolute value. A picture of one value is mid-grey.

    Raises
    ------
    ValueError
        The layout is not an image of D values.
    """
    rows = _as_wide_as(rows, layout)
    flat = torch.nan_to_num(rows.double())
    if limits is not None:
        low, high = (limit.double().cpu()[:, None] for limit in limits)
    elif symmetric:
        high = flat.abs().amax(1, keepdim=True)
        low = -high
    else:
        low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    grey = torch.where(high > low, (flat - low) / (high - low), 0.5).clamp(0, 1)
    if len(layout.shape) == 2:
        return grey.reshape(-1, *layout.shape).numpy()
    pictures = grey.reshape(-1, *layout.shape)
    # A fourth channel is an opacity, which weights do not have; other counts have no colours to show.
    pictures = pictures[:, :3] if layout.shape[0] in (3, 4) else pictures.mean(1, keepdim=True)
    channels_last = pictures.permute(0, 2, 3, 1)
    return (channels_last if channels_last.shape[-1] == 3 else channels_last[..., 0]).numpy()


def filter_tiles(vectors: Tensor, layout: Layout, weights: Weights) -> npt.NDArray[np.float64]:
    """(N, D) feature vectors -> (N, h, w) or (N, h, w, 3), as ``filters`` draws them."""
    if weights == "encoder":
        vectors = vectors - vectors.mean(1, keepdim=True)
    return tiles(vectors, layout, symmetric=True)


def _as_wide_as(rows: Tensor, layout: Layout) -> Tensor:
    """(N, ...) -> (N, D) on the CPU, if that is what the layout describes."""
    flat = rows.detach().cpu().flatten(1)
    if layout.kind != "image" or math.prod(layout.shape) != flat.shape[1]:
        raise ValueError(f"expected images of {layout.shape}; got rows of {flat.shape[1]} values")
    return flat


def _ranking(vectors: Tensor, layout: Layout, order: Order | None) -> Tensor:
    """Feature numbers, first to last."""
    n_latents = len(vectors)
    if order is None:
        return _smoothness(vectors, layout).argsort(descending=True, stable=True)
    given = order.density if isinstance(order, Evaluation) else torch.as_tensor(np.asarray(order))
    if given.is_floating_point():
        if len(given) != n_latents:
            raise ValueError(f"expected a score for each of {n_latents} features; got {len(given)}")
        return given.cpu().argsort(descending=True, stable=True)
    if len(given) and not 0 <= int(given.min()) <= int(given.max()) < n_latents:
        raise ValueError(f"expected features from 0 to {n_latents - 1}; got {given.tolist()[:8]}")
    return given.long()


def _smoothness(vectors: Tensor, layout: Layout) -> Tensor:
    """(L,) at most 1: one minus how much neighbouring pixels differ, as a share of the picture's energy.

    Without data nothing says how often a feature fires. Of what the weights alone could tell, this ranks features
    most as use does: a pattern learned from images is smooth, a latent left at its random start is not.
    """
    pictures = vectors.reshape(len(vectors), *layout.shape)
    energy = pictures.flatten(1).square().sum(1)
    across = pictures.diff(dim=-1).flatten(1).square().sum(1) + pictures.diff(dim=-2).flatten(1).square().sum(1)
    return torch.where(energy > 0, 1 - across / energy, -math.inf)


# ------------------------------------------------------------------------------------------------- training


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
        A run folder, its ``metrics.jsonl``, a Run, or the records themselves (what ``Trainer.fit`` returns).
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
    ax = _axes(ax, (6.4, 3.8))
    for (name, steps, values, val_steps, val_values), colour in zip(drawn, _colours(len(drawn)), strict=True):
        if steps:
            ax.plot(steps, values, color=colour, linewidth=STYLE["line_width"], label=name)
        if val_steps:
            ax.plot(val_steps, val_values, "o", color=colour, markersize=4, markeredgecolor="white",
                    markeredgewidth=0.7, label=f"{name}, held out")  # fmt: skip
    everything = [v for line in drawn for v in (*line[2], *line[4])]
    if spans_decades(everything):
        ax.set_yscale("log")
    _dress(ax, grid="y")
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
    return run.history() if hasattr(run, "history") else list(run)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _colours(n: int) -> list[str]:
    cycle = STYLE["cycle"]
    return [cycle[i % len(cycle)] for i in range(n)]


# ---------------------------------------------------------------------------------------------- firing rates


def density(density: Tensor | npt.ArrayLike | Evaluation, ax: Axes | None = None) -> Axes:
    """How often features fire: a histogram of rates on a logarithmic scale. The dead have a bar of their own.

    ``density``: (L,) fractions of rows on which each feature fired, or an ``Evaluation``.

    Raises
    ------
    ValueError
        A rate is not between 0 and 1, or there is none.
    """
    rates = density.density if isinstance(density, Evaluation) else torch.as_tensor(np.asarray(density))
    counts, edges, n_dead = rate_histogram(rates)
    ax = _axes(ax, (6.4, 3.6))
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
    _dress(ax, grid="y")
    ax.set_xlabel("share of rows on which a feature fires")
    ax.set_ylabel("features")
    return ax


def rate_histogram(rates: Tensor, bins_per_decade: int = 6) -> tuple[list[int], list[float], int]:
    """(L,) rates -> counts, log10 edges (one more than counts, the last 0 = every row), and how many never fire."""
    rates = rates.double().flatten().cpu()
    if len(rates) == 0 or not bool(((rates >= 0) & (rates <= 1)).all()):
        raise ValueError(f"expected rates between 0 and 1, one per feature; got {rates.tolist()[:6]}")
    alive = rates[rates > 0].log10()
    decades = max(2, math.ceil(-float(alive.min()) + 1e-9)) if len(alive) else 2
    n_bins = decades * bins_per_decade
    places = ((alive + decades) * bins_per_decade).long().clamp(0, n_bins - 1)
    edges = [-decades + i / bins_per_decade for i in range(n_bins + 1)]
    return torch.bincount(places, minlength=n_bins).tolist(), edges, int((rates == 0).sum())


def rate_label(decade: int) -> str:
    """-2 -> "1%"."""
    return f"{100 * 10.0**decade:.12g}%"


# ------------------------------------------------------------------------------------------- reconstructions


def reconstructions(model: Autoencoder, x: Tensor | npt.ArrayLike, ax: Axes | None = None, n: int = 10) -> Axes:
    """The first ``n`` rows of ``x`` (B, *input shape), in data space, and what the model makes of them.

    Images: originals above, reconstructions below, each pair on the scale of its original. Tables: a pair of strips
    per row, a cell per column, in standard deviations of the rows drawn, so that columns of any unit compare.

    Raises
    ------
    ValueError
        ``x`` is empty or not of the model's shape, or the model's targets are not its inputs.
    """
    rows = (x.detach() if isinstance(x, Tensor) else torch.as_tensor(np.asarray(x)))[:n]
    if model.input_shape != model.target_shape:
        raise ValueError(f"expected targets like inputs; the model maps {model.input_shape} to {model.target_shape}")
    if len(rows) == 0:
        raise ValueError("expected at least one row to reconstruct; got none")
    recon = model.reconstruct(rows).flatten(1).double().cpu()
    original = rows.flatten(1).double().cpu()
    if model.layout.kind == "image":
        return _image_pairs(original, recon, model.layout, ax)
    return _strip_pairs(original, recon, model.layout, ax)


def _image_pairs(original: Tensor, recon: Tensor, layout: Layout, ax: Axes | None) -> Axes:
    limits = (original.amin(1), original.amax(1))
    above, below = (tiles(rows, layout, limits=limits) for rows in (original, recon))
    ax = _axes(ax, (min(10.0, 0.8 * len(above) + 1.2), 2.2))
    picture = _mosaic(np.concatenate([above, below]), len(above))
    _show(ax, picture)
    for name, place in (("original", 0.25), ("reconstructed", 0.75)):
        ax.text(-0.01, 1 - place, name, transform=ax.transAxes, ha="right", va="center",
                fontsize=STYLE["label_size"], color=STYLE["ink"])  # fmt: skip
    return ax


def _strip_pairs(original: Tensor, recon: Tensor, layout: Layout, ax: Axes | None) -> Axes:
    mean, spread = original.mean(0), original.std(0, correction=0)
    # One row, or a column that never varies, has no spread to measure by: its own size will do.
    scale = torch.where(spread > 0, spread, original.abs().amax(0).clamp_min(1e-30))
    gap = torch.full_like(original, math.nan)
    pairs = torch.stack([(original - mean) / scale, (recon - mean) / scale, gap], dim=1).flatten(0, 1)[:-1]
    ax = _axes(ax, (min(10.0, 1.6 + 0.35 * original.shape[1]), 0.8 + 0.42 * len(original)))
    ax.imshow(pairs.numpy(), cmap=STYLE["diverging"], vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    ax.set_yticks([3 * i + 0.5 for i in range(len(original))], [f"row {i}" for i in range(len(original))])
    _dress(ax, grid=None)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    width = original.shape[1]
    if width <= 40:
        names = [_plain_text(column_name(layout, i)) for i in range(width)]
        ax.set_xticks(range(width), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.set_xlabel("column")
    _title(ax, "each row, and below it its reconstruction")
    return ax


# ---------------------------------------------------------------------------------------------------- drawing


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # here, because it takes longer to import than all of fewfire

    return plt.subplots(figsize=size, layout="constrained")[1]


def _mosaic(pictures: npt.NDArray[np.float64], columns: int) -> npt.NDArray[np.float64]:
    """(N, h, w) or (N, h, w, 3) -> one RGBA picture, tiles in reading order, transparent gaps between them."""
    count, h, w = pictures.shape[:3]
    rgb = pictures if pictures.ndim == 4 else np.repeat(pictures[..., None], 3, axis=-1)
    # Small tiles are enlarged by whole pixels, so that a gap can be thinner than a pixel of theirs.
    zoom = max(1, round(32 / max(h, w)))
    rgb = rgb.repeat(zoom, axis=1).repeat(zoom, axis=2)
    h, w = h * zoom, w * zoom
    gap = max(1, round(STYLE["gap"] * min(h, w)))
    lines = max(1, math.ceil(count / columns))
    picture = np.zeros((lines * (h + gap) - gap, columns * (w + gap) - gap, 4))
    for i, tile in enumerate(rgb):
        top, left = (i // columns) * (h + gap), (i % columns) * (w + gap)
        picture[top : top + h, left : left + w, :3] = tile
        picture[top : top + h, left : left + w, 3] = 1
    return picture


def _show(ax: Axes, picture: npt.NDArray[np.float64]) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_axis_off()


def _dress(ax: Axes, grid: Literal["x", "y"] | None) -> None:
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


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, loc="left", fontsize=STYLE["title_size"], color=STYLE["ink"], pad=8)


def _plain_text(name: str) -> str:
    """A name from data as matplotlib should draw it: no $formulas$, one line, not endless."""
    line = " ".join(name.split())
    line = line if len(line) <= 32 else line[:31] + "…"
    return line.replace("\\", "\\\\").replace("$", r"\$") if "$" in line else line
