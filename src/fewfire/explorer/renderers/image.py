"""Pictures: pixels, what of them made a feature fire, and the filters that a feature writes and looks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import plot
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import packed
from fewfire.explorer.renderers.family import Marks, Numbers, Renderer, contributions
from fewfire.explorer.renderers.patterns import describe
from fewfire.explorer.scan import Codes

__all__ = ["Image"]

LEAST_CONTRAST = 0.5
"""of the usual difference between a picture's lightest and darkest value"""
SAMPLED = 512
"""pictures from which the usual one is known"""
MOST_PIXELS = 96
"""of a side; larger pictures are shrunk, for a page shows dozens of them"""


class Image(Renderer, name="image"):
    """Grey or colour pictures, each in the scale of its own target, so that it compares with its reconstruction."""

    noun = "picture"

    def __init__(self, model: Autoencoder, source: Source, codes: Codes) -> None:
        super().__init__(model, source, codes)
        first = next(iter(source.batches(SAMPLED, shuffle=False))).x.flatten(1)
        self.least = LEAST_CONTRAST * float((first.amax(1) - first.amin(1)).median()) if len(first) else 0.0
        """no picture's scale is narrower: noise in a flat one must not look like a pattern"""

    def about(self) -> dict[str, Any]:
        return {"shape": list(self._size)}

    def rows(self, x: Tensor, target: Tensor, recon: Tensor, numbers: Numbers) -> list[dict[str, Any]]:
        drawn = {"x": self._pictures(x, x)}
        if math.prod(self.model.target_shape) == math.prod(self.layout.shape):
            drawn["recon"] = self._pictures(recon, target)
            if target is not x:
                drawn["target"] = self._pictures(target, target)
        return [{name: packed(pictures[i]) for name, pictures in drawn.items()} for i in range(len(x))]

    def reasons(self, share: Tensor) -> list[dict[str, Any]]:
        """Where in the picture the error is."""
        if share.shape[1] != math.prod(self.layout.shape):
            return super().reasons(share)
        maps = self._resized(share.float().view(len(share), -1, *self.layout.shape[-2:]).sum(1))
        scale = maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return [{"error": packed(one)} for one in (maps / scale * 255).round().to(torch.uint8).numpy()]

    def marks(self, x: Tensor, features: Tensor, numbers: Numbers) -> Marks:
        heat = self._maps(x, features) if len(self.model.latent_shape) == 3 else self._added(x, features)
        heat = heat.clamp_min(0)
        scale = heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return {"heat": (heat / scale * 255).round().to(torch.uint8).numpy()}

    def drawings(self) -> Sequence[dict[str, Any]]:
        found: list[dict[str, Any]] = [{} for _ in range(self.model.latent_shape[0])]
        for name, weights in (("writes", "decoder"), ("reads", "encoder")):
            drawn = self._drawn(weights)
            if drawn is not None and len(drawn.vectors) == len(found):
                tiles = _bytes(plot.filter_tiles(drawn.vectors, drawn.layout, weights))  # type: ignore[arg-type]
                for picture, tile in zip(found, tiles, strict=True):
                    picture[name] = packed(tile)
        return found

    def labels(self, examples: Examples) -> list[str]:
        drawn = self._drawn("decoder")
        if drawn is None or min(drawn.layout.shape[-2:]) < 4:
            return super().labels(examples)
        return describe(drawn.vectors.view(len(drawn.vectors), -1, *drawn.layout.shape[-2:]).mean(1))

    def _drawn(self, weights: Any) -> plot.Drawn | None:
        """None where a feature's weights are no picture."""
        try:
            drawn = plot.drawn(self.model, weights)
        except ValueError:  # no weights of that kind
            return None
        is_picture = drawn.layout.kind == "image" and math.prod(drawn.layout.shape) == drawn.vectors.shape[1]
        return drawn if is_picture else None

    def _pictures(self, rows: Tensor, scale: Tensor) -> npt.NDArray[np.uint8]:
        """(B, h, w) or (B, h, w, 3)."""
        flat, limits = rows.flatten(1), scale.flatten(1)
        low, high = limits.amin(1), limits.amax(1)
        wider = (self.least - (high - low)).clamp_min(0) / 2
        tiles = plot.tiles(flat, self.layout, limits=(low - wider, high + wider))
        return _bytes(self._shrunk(tiles))

    def _shrunk(self, tiles: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        h, w = self._size
        if (h, w) == tiles.shape[1:3]:
            return tiles
        channels_first = torch.from_numpy(tiles).view(*tiles.shape[:3], -1).movedim(3, 1)
        small = F.interpolate(channels_first, (h, w), mode="area").movedim(1, 3)
        return small.reshape(len(tiles), h, w, *tiles.shape[3:]).numpy()

    @property
    def _size(self) -> tuple[int, int]:
        """(h, w) of a picture on the page."""
        h, w = self.layout.shape[-2:]
        zoom = min(1.0, MOST_PIXELS / max(h, w))
        return max(1, round(h * zoom)), max(1, round(w * zoom))

    def _added(self, x: Tensor, features: Tensor) -> Tensor:
        """(n, h, w) what each pixel added, over its channels."""
        added = contributions(self.model, x, features)
        maps = added.view(len(added), -1, *self.layout.shape[-2:]).sum(1)
        return self._resized(maps)

    @torch.no_grad()
    def _maps(self, x: Tensor, features: Tensor) -> Tensor:
        """(n, h, w) how high the feature is at each place of a convolution, stretched over the picture."""
        parts = []
        for rows, wanted in zip(torch.split(x, 64), torch.split(features, 64), strict=True):
            latents = self.model.encode(rows).cpu()
            parts.append(latents[torch.arange(len(rows)), wanted].float())
        maps = torch.cat(parts)
        return F.interpolate(maps[:, None], self._size, mode="bilinear", align_corners=False)[:, 0]

    def _resized(self, maps: Tensor) -> Tensor:
        size = self._size
        return maps if tuple(maps.shape[1:]) == size else F.interpolate(maps[:, None], size, mode="area")[:, 0]


def _bytes(pictures: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """0 to 1 -> 0 to 255."""
    return np.round(pictures * 255).astype(np.uint8)
