"""Feature maps of a row: where each feature fires in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.plot.drawing import STYLE, axes, dress, mosaic, rgb, show, spacing, title
from fewfire.plot.features import tiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_MAPS = 64
LEAST_PLACES = 10
"""a place is drawn as wide as if there were no more of them than this"""
PALE = 0.45
"""contrast of the row beneath its maps"""


def feature_maps(
    model: Autoencoder | HasModel,
    x: Tensor | npt.ArrayLike,
    ax: Axes | None = None,
    *,
    n: int | None = None,
    order: Sequence[int] | None = None,
    columns: int | None = None,
) -> Axes:
    """Where each feature fires in one row: a numbered picture per feature map, the row itself pale beneath it.

    The first tile is the row alone. Colour is activation, all maps on one scale: orange above 0, blue below; a place
    is drawn at least a tenth of the picture wide. Of a series the maps are the lines of one picture.

    Parameters
    ----------
    x
        One row (*input shape), in data space; of several (B, *input shape), the first.
    n
        How many maps; None: all that fire, at most 64.
    order
        Map numbers; None: those that fire, the highest peak first.
    columns
        Tiles per line; None: about square.

    Raises
    ------
    ValueError
        The latents are not maps, or there is no such map.
    """
    model = as_model(model)
    if len(model.latent_shape) == 1:
        raise ValueError("expected latents that are maps (network conv with latents 'maps'); this model's are a vector")
    row = torch.as_tensor(np.asarray(x)) if not isinstance(x, Tensor) else x.detach()
    row = row[:1] if row.ndim > len(model.input_shape) else row[None]
    maps = model.encode(row)[0].cpu().double()
    chosen = _chosen(maps, order)[: MAX_MAPS if n is None else n]
    if model.layout.kind == "image" and maps.ndim == 3:
        return _overlays(model, row, maps, chosen, ax, columns)
    return _lines(maps.flatten(1), chosen, ax)


def _chosen(maps: Tensor, order: Sequence[int] | None) -> list[int]:
    if order is None:
        peaks = maps.flatten(1).abs().amax(1)
        by_peak: list[int] = peaks.argsort(descending=True, stable=True).tolist()
        return by_peak[: max(1, int((peaks > 0).sum()))]
    wrong = [j for j in order if not 0 <= j < len(maps)]
    if wrong:
        raise ValueError(f"expected map numbers from 0 to {len(maps) - 1}; got {wrong[0]}")
    return [int(j) for j in order]


def _overlays(
    model: Autoencoder, row: Tensor, maps: Tensor, chosen: list[int], ax: Axes | None, columns: int | None
) -> Axes:
    picture = tiles(row.flatten(1), model.layout)[0]
    grey = picture if picture.ndim == 2 else picture.mean(-1)
    strength = _enlarged(maps[chosen], grey.shape) / max(float(maps.abs().max()), 1e-30)
    painted = [rgb(STYLE["positive" if sign > 0 else "negative"]) for sign in (1, -1)]
    colour = np.where(strength[..., None] > 0, *painted)
    cover = np.abs(strength)[..., None] ** 0.7  # so that weak places are seen at all
    pale = 0.96 - PALE * grey[..., None]
    overlays = (1 - cover) * pale + cover * colour
    alone = np.repeat(grey[..., None], 3, axis=-1) if picture.ndim == 2 else picture
    every = np.concatenate([alone[None], overlays])
    columns = min(len(every), columns or math.ceil(math.sqrt(len(every))))
    lines = math.ceil(len(every) / columns)
    ax = axes(ax, (min(9.0, 0.9 * columns + 0.3), min(9.0, 0.9 * lines + 0.6)))
    show(ax, mosaic(every, columns))
    zoom, gap = spacing(*grey.shape)
    h, w = (n * zoom for n in grey.shape)
    for i, j in enumerate(chosen, start=1):
        left, bottom = i % columns * (w + gap), i // columns * (h + gap) + h
        ax.text(left + 0.05 * w, bottom - 0.05 * h, str(j), fontsize=8, va="bottom", color=STYLE["muted"])
    shown = f"{len(chosen)}" if len(chosen) == len(maps) else f"{len(chosen)} of {len(maps)}"
    title(ax, f"a row, and where {shown} feature maps fire")
    return ax


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """(N, h, w) -> (N, *size): each pixel has its place's value, or a higher one so near that it would be lost."""
    cell = min(size) // min(maps.shape[1:])
    for side, n in enumerate(size, start=1):
        maps = maps.index_select(side, torch.arange(n) * maps.shape[side] // n)
    near = max(0, (min(size) // LEAST_PLACES - cell + 1) // 2)
    highest, lowest = (s * F.max_pool2d(s * maps, 2 * near + 1, stride=1, padding=near) for s in (1, -1))
    return highest.where(highest >= -lowest, lowest).numpy()


def _lines(maps: Tensor, chosen: list[int], ax: Axes | None) -> Axes:
    ax = axes(ax, (6.4, min(8.0, 1.2 + 0.16 * len(chosen))))
    highest = max(float(maps.abs().max()), 1e-30)
    ax.imshow(maps[chosen].numpy(), cmap=STYLE["diverging"], vmin=-highest, vmax=highest, aspect="auto",
              interpolation="nearest")  # fmt: skip
    dress(ax, grid=None)
    ax.set_yticks(range(len(chosen)), [str(j) for j in chosen])
    ax.tick_params(length=0)
    ax.set_xlabel("place")
    ax.set_ylabel("feature")
    title(ax, "where features fire in a row")
    return ax
