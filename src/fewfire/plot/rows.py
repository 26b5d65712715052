"""Rows, and what the model makes of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Layout
from fewfire.plot.drawing import STYLE, axes, dress, mosaic, plain_text, show, title
from fewfire.plot.features import column_name, tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def reconstructions(
    model: Autoencoder | HasModel, x: Tensor | npt.ArrayLike, ax: Axes | None = None, n: int = 10
) -> Axes:
    """The first ``n`` rows of ``x`` (B, *input shape), in data space, and what the model makes of them.

    Images: originals above, reconstructions below, each pair on the scale of its original. Tables: a pair of strips
    per row, a cell per column, in standard deviations of the rows drawn, so that columns of any unit compare.

    Raises
    ------
    ValueError
        ``x`` is empty or not of the model's shape, or the model's targets are not its inputs.
    """
    model = as_model(model)
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
    ax = axes(ax, (min(10.0, 0.8 * len(above) + 1.2), 2.2))
    picture = mosaic(np.concatenate([above, below]), len(above))
    show(ax, picture)
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
    ax = axes(ax, (min(10.0, 1.6 + 0.35 * original.shape[1]), 0.8 + 0.42 * len(original)))
    ax.imshow(pairs.numpy(), cmap=STYLE["diverging"], vmin=-3, vmax=3, aspect="auto", interpolation="nearest")
    ax.set_yticks([3 * i + 0.5 for i in range(len(original))], [f"row {i}" for i in range(len(original))])
    dress(ax, grid=None)
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    width = original.shape[1]
    if width <= 40:
        names = [plain_text(column_name(layout, i)) for i in range(width)]
        ax.set_xticks(range(width), names, rotation=45, ha="right", rotation_mode="anchor")
    else:
        ax.set_xlabel("column")
    title(ax, "each row, and below it its reconstruction")
    return ax
