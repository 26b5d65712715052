"""Words for small pictures: an edge, which way it runs, and where it lies."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["describe"]

ORIENTED = 0.55
"""coherence of the gradients from which a picture has a direction"""
COMPACT = 0.55
"""share of the energy in one of nine overlapping parts from which a picture has a place"""
DIRECTIONS = ("vertical", "diagonal ╱", "horizontal", "diagonal ╲")
PLACES = ("upper left", "top", "upper right", "left", "middle", "right", "lower left", "bottom", "lower right")


def describe(pictures: Tensor) -> list[str]:
    """(L, h, w) -> "vertical edge, left" and the like; "" for a picture of nothing.

    The direction is that of the structure tensor's main axis (Bigun & Granlund 1987), its coherence says how far all
    gradients agree; the place is the part, half as long and wide as the picture, that has most of its energy.
    """
    pictures = pictures.float() - pictures.float().mean((1, 2), keepdim=True)
    across = (pictures[:, 1:, 1:] - pictures[:, 1:, :-1] + pictures[:, :-1, 1:] - pictures[:, :-1, :-1]) / 2
    down = (pictures[:, 1:, 1:] - pictures[:, :-1, 1:] + pictures[:, 1:, :-1] - pictures[:, :-1, :-1]) / 2
    xx, yy, xy = (product.sum((1, 2)) for product in (across * across, down * down, across * down))
    size = (xx + yy).clamp_min(torch.finfo(torch.float32).tiny)
    coherence = ((xx - yy).square() + 4 * xy.square()).sqrt() / size
    angle = torch.atan2(2 * xy, xx - yy) / 2  # of the gradient: an edge runs at a right angle to it
    # rows count downwards: a gradient to the lower right crosses an edge from the lower left to the upper right
    direction = (angle / (math.pi / 4)).round().long() % 4
    place, share = _places(pictures)
    words = zip((xx + yy > 0).tolist(), (coherence > ORIENTED).tolist(), direction.tolist(), place, share, strict=True)
    return [
        ""
        if not seen
        else (f"{DIRECTIONS[turn]} edge" if oriented else "spot" if part > COMPACT else "")
        + (f", {PLACES[where]}" if part > COMPACT else "")
        for seen, oriented, turn, where, part in words
    ]


def _places(pictures: Tensor) -> tuple[list[int], list[float]]:
    """The part with most energy, of nine that overlap, and its share of all of it."""
    energy = pictures.square()
    h, w = energy.shape[1:]
    tall, wide = -(-h // 2), -(-w // 2)
    tops, lefts = ([round(i * (n - part) / 2) for i in range(3)] for n, part in ((h, tall), (w, wide)))
    parts = torch.stack([energy[:, t : t + tall, x : x + wide].sum((1, 2)) for t in tops for x in lefts], 1)
    share, where = (parts / energy.sum((1, 2)).clamp_min(torch.finfo(torch.float32).tiny)[:, None]).max(1)
    return where.tolist(), share.tolist()
