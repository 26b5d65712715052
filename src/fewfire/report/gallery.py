"""The features as the page draws them: pictures of images, strongest columns of tables, and rows that excite them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fewfire import plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Layout
from fewfire.report import charts, words
from fewfire.report.gather import Example, Gathered, Kind, kind_of

__all__ = ["Feature", "Gallery", "tile_size"]

MAX_FILTERS = 400
MAX_CARDS = 24
MAX_COLUMNS = 6
LEAST_SHARE = 0.04
"""columns below this share of a feature's strongest say nothing"""
MAX_SILENT = 32
"""of the features that never fired, this many are drawn: they look alike"""
TILE = 48
"""CSS pixels, about: a tile is a whole multiple of a small picture, so that its pixels stay square"""
FEW_FEATURES = 64
"""up to this many have larger tiles, and captions"""


@dataclass(frozen=True)
class Feature:
    """A feature in the gallery."""

    number: int
    rate: float
    how_often: str
    """in words: how often it fires, how high it rises or how much it varies"""
    brief: str
    """the same in a number, for a caption"""
    largest: float
    """highest activation on the rows read"""
    share: float
    """firing rate, or variation, as a share of the highest one, for the bar beneath it"""
    picture: npt.NDArray[np.float64] | None = None
    columns: tuple[tuple[str, str, float], ...] = ()
    """(name, weight in writing, weight from -1 to 1 as a share of the largest)"""

    @property
    def label(self) -> str:
        """What a pointer resting on it shows."""
        return f"feature {self.number}: {self.how_often}, at most {charts.short(self.largest)}"


class Gallery:
    """The features, the most used first."""

    def __init__(self, model: Autoencoder, gathered: Gathered) -> None:
        self.model = model
        self.gathered = gathered
        self.is_image = model.layout.kind == "image"
        self.kind: Kind = kind_of(model)
        self.are_maps = len(model.latent_shape) > 1

    @property
    def logistic(self) -> bool:
        return self.kind == "logistic"

    @property
    def normal(self) -> bool:
        return self.kind == "normal"

    @property
    def weights(self) -> plot.Weights:
        """What each logistic unit of one layer responds to, as in the textbook; else what a feature writes."""
        return "encoder" if self.logistic and "linear_encoder" in self.model.gives else "decoder"

    @cached_property
    def drawn(self) -> plot.Drawn | None:
        """What is drawn of each feature; None where its picture would not be one of rows."""
        drawn = plot.drawn(self.model, self.weights)
        is_drawable = not self.is_image or math.prod(drawn.layout.shape) == drawn.vectors.shape[1]
        return drawn if is_drawable else None

    @cached_property
    def features(self) -> list[Feature]:
        """Pictures of images, strongest columns of a table."""
        if self.drawn is None:
            return []
        vectors, layout = self.drawn
        shown = self._shown()
        pictures = plot.filter_tiles(vectors[shown], layout, self.weights) if self.is_image else None
        use = self.gathered.spread if self.normal else self.gathered.evaluation.density
        highest = max(float(use.max()), 1e-12)
        return [
            Feature(
                number=j,
                rate=float(self.gathered.evaluation.density[j]),
                how_often=self.how_often(j),
                brief=self._brief(j),
                largest=float(self.gathered.evaluation.largest[j]),
                share=float(use[j]) / highest,
                picture=None if pictures is None else pictures[i],
                columns=() if self.is_image else _columns(vectors[j], self.model.layout),
            )
            for i, j in enumerate(shown)
        ]

    def how_often(self, j: int) -> str:
        """A feature's use in words: how often it fires, or how much it varies where none is ever silent."""
        rate, largest = float(self.gathered.evaluation.density[j]), float(self.gathered.evaluation.largest[j])
        if self.normal:
            return f"varies by {charts.short(float(self.gathered.spread[j]))} from row to row"
        if self.logistic and rate == 0:
            return f"rises to {charts.short(largest)}"
        return f"fires on {words.percent(rate)} of the rows" if rate else "never fired"

    def _brief(self, j: int) -> str:
        rate, largest = float(self.gathered.evaluation.density[j]), float(self.gathered.evaluation.largest[j])
        if self.normal:
            return "±" + charts.short(float(self.gathered.spread[j]))
        return words.percent(rate) if rate or not self.logistic else charts.short(largest)

    def _shown(self) -> list[int]:
        """Numbers of the features drawn. Every logistic unit counts as used: one below 1/2 may be telling."""
        n_used = len(self.gathered.order) if self.logistic else int((self.gathered.evaluation.fired > 0).sum())
        if not self.is_image:
            return self.gathered.order[:MAX_CARDS].tolist()
        return self.gathered.order[: min(MAX_FILTERS, n_used + MAX_SILENT)].tolist()

    @property
    def n_silent(self) -> int:
        return 0 if self.logistic else int((self.gathered.evaluation.fired == 0).sum())

    @property
    def n_varying(self) -> int:
        """Normal latents that say something about a row."""
        return int((self.gathered.spread > words.STILL).sum())

    @property
    def used(self) -> list[Feature]:
        return [f for f in self.features if f.rate > 0 or self.logistic]

    @property
    def silent(self) -> list[Feature]:
        return [f for f in self.features if f.rate == 0 and not self.logistic]

    @property
    def few(self) -> bool:
        return len(self.features) <= FEW_FEATURES

    def size(self, about: int = TILE) -> tuple[int, int]:
        """(width, height) in CSS pixels of a feature's picture, and of rows beside it."""
        return tile_size(self.model.layout if self.drawn is None else self.drawn.layout, about)

    # ------------------------------------------------------------------------------- rows that excite them

    def examples(self, j: int, rows: list[tuple[float, Example]]) -> list[dict[str, Any]]:
        """Pictures of the rows that excite feature j most; of a feature map, the part of each that does."""
        layout = self.model.layout
        x = torch.stack([e.x for _, e in rows])
        pictures = plot.tiles(x, layout)
        if self.drawn is not None and self.are_maps:
            h, w = self.drawn.layout.shape[-2:]
            corners = [self._corner(int(e.peaks[j]), (h, w)) for _, e in rows]
            parts = [p[y : y + h, x : x + w] for p, (y, x) in zip(pictures, corners, strict=True)]
        else:
            parts = list(pictures)
        return [{"row": e.row, "value": value, "picture": part} for (value, e), part in zip(rows, parts, strict=True)]

    def _corner(self, peak: int, size: tuple[int, int]) -> tuple[int, int]:
        """Where a part of this size lies about a place of a feature map, within the picture."""
        grid, whole = self.model.latent_shape[1:], self.model.layout.shape[-2:]
        places = np.unravel_index(peak, grid)
        middles = [(int(p) + 0.5) * n / g for p, g, n in zip(places, grid, whole, strict=True)]
        y, x = (
            min(max(round(middle - part / 2), 0), n - part)
            for middle, part, n in zip(middles, size, whole, strict=True)
        )
        return y, x


def tile_size(layout: Layout, about: int = TILE) -> tuple[int, int]:
    """(width, height) in CSS pixels of a picture: a whole multiple of it when it is small, else ``about``."""
    h, w = layout.shape[-2:]
    longest = max(h, w)
    zoom = max(1, round(about / longest)) if longest <= about else about / longest
    return max(1, round(w * zoom)), max(1, round(h * zoom))


def _columns(vector: Tensor, layout: Layout) -> tuple[tuple[str, str, float], ...]:
    strongest = plot.strongest_columns(vector, layout, MAX_COLUMNS)
    if not strongest:
        return ()
    largest = abs(strongest[0][1])
    digits = max(0, 1 - math.floor(math.log10(largest)))  # the same for all, so that points align
    return tuple(
        (name, f"{value:+,.{digits}f}".replace("-", "−"), value / largest)
        for name, value in strongest
        if abs(value) >= LEAST_SHARE * largest
    )
