"""What features look like: pictures of images, strongest columns of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Layout
from fewfire.evaluation import Evaluation
from fewfire.plot.drawing import STYLE, axes, dress, mosaic, plain_text, show, title
from fewfire.plot.responses import Weights, drawn, feature_vectors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_TILES = 400

Order: TypeAlias = Sequence[int] | Sequence[float] | npt.NDArray[Any] | Tensor | Evaluation


def filters(
    model: Autoencoder | HasModel,
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
        "decoder": what a feature writes; in a deep network, when it fires alone and strongly. Of a feature map, the
        patch that it writes about a place. "encoder": what a unit of the first layer responds to most among inputs of
        norm 1, ``W_j / ||W_j||``, the picture of the textbook (Ng 2011, CS294A, section 4). Mid-grey is then the
        tile's mean, which rows without a mean cannot excite, and which would hide the pattern.

    Raises
    ------
    ValueError
        The rows or the targets are not images, or the network has no weights of that kind.
    """
    model = as_model(model)
    if model.layout.kind != "image":
        raise ValueError(
            "filters draws images and this model's rows are a table; draw plot.top_columns(model, feature). If they "
            'are images, say so: model.layout = Layout("image", (height, width)); of an estimator, module_.layout'
        )
    vectors, layout = drawn(model, weights)
    vectors = _as_wide_as(vectors, layout)
    chosen = _ranking(vectors, layout, order)[: MAX_TILES if n is None else n]
    pictures = filter_tiles(vectors[chosen], layout, weights)
    columns = min(len(pictures), columns or math.ceil(math.sqrt(len(pictures)))) or 1
    lines = math.ceil(len(pictures) / columns)
    ax = axes(ax, (min(9.0, 0.55 * columns + 0.3), min(9.0, 0.55 * lines + 0.6)))
    show(ax, mosaic(pictures, columns))
    shown = f"{len(pictures):,}" if len(pictures) == len(vectors) else f"{len(pictures):,} of {len(vectors):,}"
    of_first_layer = weights == "encoder" and len(vectors) != model.n_latents
    title(ax, f"{shown} {'units of the first layer' if of_first_layer else 'features'}")
    return ax


def top_columns(
    model: Autoencoder | HasModel,
    feature: int | Sequence[int],
    ax: Axes | None = None,
    *,
    n: int = 8,
    weights: Weights = "decoder",
) -> Axes:
    """The columns of a table that a feature, or each of several, is about: what it raises (right) and lowers (left).

    Weights are those of model space: with ``preprocess="standardize"`` they are in standard deviations of the column
    for an activation of 1. ``n`` is the number of columns per feature, strongest first.

    Raises
    ------
    ValueError
        The rows are images, the network has no such weight per feature, or there is no such feature.
    """
    model = as_model(model)
    if model.layout.kind == "image":
        raise ValueError("top_columns draws tables and this model's rows are images; draw plot.filters(model)")
    features = [feature] if isinstance(feature, int) else [int(f) for f in feature]
    vectors = feature_vectors(model, weights)
    for f in features:
        if not 0 <= f < len(vectors):
            raise ValueError(f"expected features from 0 to {len(vectors) - 1}; got {f}")
    groups = [strongest_columns(vectors[f], model.layout, n) for f in features]
    ax = axes(ax, (6.4, 0.6 + 0.3 * sum(len(group) + 1 for group in groups)))
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
        marks += [(place, plain_text(name)) for place, (name, _) in zip(places, group, strict=True)]
        y += len(group) + 0.5
    ax.set_yticks([place for place, _ in marks], [name for _, name in marks])
    ax.set_ylim(y - 0.4, -0.9)
    dress(ax, grid="x")
    ax.axvline(0, color=STYLE["ink"], linewidth=0.8)
    ax.set_xlabel(f"{weights} weight")
    title(ax, f"feature {features[0]}" if len(features) == 1 else "strongest columns")
    return ax


def strongest_columns(vector: Tensor, layout: Layout, n: int) -> list[tuple[str, float]]:
    """(D,) -> the n columns of largest absolute value, by name, strongest first; zeros are left out."""
    top = vector.abs().topk(min(n, len(vector))).indices.tolist()
    return [(column_name(layout, i), float(vector[i])) for i in top if vector[i] != 0]


def column_name(layout: Layout, i: int) -> str:
    """Of the i-th value of a row; of a series, ``name[t]``: channel and time step."""
    if layout.kind == "series":
        channel, step = divmod(i, layout.shape[1])
        name = layout.columns[channel] if layout.columns else f"channel {channel}"
        return f"{name}[{step}]"
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
