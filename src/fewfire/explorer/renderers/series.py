"""Stretches of time: one line a channel, and when a feature found what it looks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire import plot
from fewfire.explorer.choosing import Examples
from fewfire.explorer.packing import packed
from fewfire.explorer.renderers.family import Marks, Numbers, Renderer, contributions

__all__ = ["Series"]

WHEN = ("early", "in the middle", "late")
"""thirds of a window"""


class Series(Renderer, name="series"):
    """Windows (channels, length), every channel in the scale of its own window."""

    noun = "window"

    def about(self) -> dict[str, Any]:
        channels, length = self.layout.shape
        names = list(self.layout.columns) or [f"channel {i}" for i in range(channels)]
        return {"channels": names, "length": length}

    def rows(self, x: Tensor, target: Tensor, recon: Tensor, numbers: Numbers) -> list[dict[str, Any]]:
        shown = {"x": x, "recon": recon} if target.shape == x.shape else {"x": x}
        if target is not x and target.shape == x.shape:
            shown["target"] = target
        arrays = {name: rows.reshape(-1, *self.layout.shape).float().cpu().numpy() for name, rows in shown.items()}
        return [{name: packed(rows[i]) for name, rows in arrays.items()} for i in range(len(x))]

    def marks(self, x: Tensor, features: Tensor, numbers: Numbers) -> Marks:
        heat = self._maps(x, features) if len(self.model.latent_shape) == 2 else self._added(x, features)
        heat = heat.clamp_min(0)
        scale = heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return {"heat": (heat / scale * 255).round().to(torch.uint8).numpy()}

    def drawings(self) -> Sequence[dict[str, Any]]:
        drawn = plot.drawn(self.model)
        if drawn.vectors.shape[1] % self.layout.shape[0]:
            return super().drawings()
        shapes = drawn.vectors.reshape(len(drawn.vectors), self.layout.shape[0], -1).numpy()
        return [{"writes": packed(shape)} for shape in shapes]

    def labels(self, examples: Examples) -> list[str]:
        vectors = plot.drawn(self.model).vectors
        if vectors.shape[1] != self.layout.shape[0] * self.layout.shape[1]:
            return super().labels(examples)
        energy = vectors.view(-1, *self.layout.shape).square()
        channel, third = energy.sum(2).argmax(1), energy.sum(1).argmax(1) * 3 // self.layout.shape[1]
        names = self.about()["channels"]
        return [f"{names[c]}, {WHEN[t]}" for c, t in zip(channel.tolist(), third.tolist(), strict=True)]

    def _added(self, x: Tensor, features: Tensor) -> Tensor:
        return contributions(self.model, x, features).view(-1, *self.layout.shape)

    @torch.no_grad()
    def _maps(self, x: Tensor, features: Tensor) -> Tensor:
        """(n, 1, length) how high the feature of a 1-D convolution is at each time, stretched over the window."""
        parts = []
        for rows, wanted in zip(torch.split(x, 64), torch.split(features, 64), strict=True):
            parts.append(self.model.encode(rows).cpu()[torch.arange(len(rows)), wanted].float())
        return F.interpolate(torch.cat(parts)[:, None], self.layout.shape[1], mode="linear", align_corners=False)
