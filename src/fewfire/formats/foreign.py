"""What every reader of a peer's folder gives back."""

from __future__ import annotations

from typing import Any, NamedTuple

from fewfire.autoencoder import Autoencoder

__all__ = ["Foreign"]


class Foreign(NamedTuple):
    """A peer's model, and everything that its folder said of it."""

    model: Autoencoder
    origin: dict[str, Any]
    """peer, architecture, units of the latents, and its whole configuration: nothing of it is lost in converting"""
