"""What every network is: a recipe for two modules."""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from fewfire.contracts import Layout, Named

__all__ = ["OUTPUTS", "Decoder", "Network", "Pair", "Sizes", "check_output", "check_tied"]

OUTPUTS = {"identity": lambda y: y, "sigmoid": torch.sigmoid}


class Sizes(NamedTuple):
    """What a network has to connect."""

    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    n_latents: int
    n_pre: int
    """pre-activations per latent"""
    layout: Layout = Layout()
    """how a person sees a row, and a convolution"""
    tied: bool = False
    """whether one set of weights shall serve both ways where the network's own setting leaves it open"""


class Pair(NamedTuple):
    """What a network builds."""

    encoder: nn.Module
    decoder: Decoder
    latent_shape: tuple[int, ...]
    """(L,), or (maps, h, w)"""


class Network(Named):
    """A recipe for an encoder and a decoder. Its settings are plain; ``build`` makes the modules."""

    gives: ClassVar[frozenset[str]] = frozenset()
    output: str
    """"identity", or "sigmoid" for reconstructions in (0, 1)"""

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        """``unit_norm``: what to do when the network's own setting leaves it open."""
        raise NotImplementedError


class Decoder(nn.Module):
    """What every decoder answers; a network's decoder module subclasses this."""

    def project_gradient(self) -> None:
        """Between backward and step: drop gradient that ``constrain`` would undo."""

    def constrain(self) -> None:
        """After a step: put parameters back where they must stay."""

    @property
    def constrained(self) -> bool:
        """Whether ``constrain`` does anything."""
        return False


def check_output(output: str) -> None:
    if output not in OUTPUTS:
        raise ValueError(f"expected output to be one of {', '.join(OUTPUTS)}; got {output!r}")


def check_tied(sizes: Sizes) -> None:
    """Whether a decoder of these sizes can read with the encoder's weights."""
    same_width = math.prod(sizes.input_shape) == math.prod(sizes.target_shape)
    if not (sizes.n_pre == 1 and same_width):
        raise ValueError("tied weights need one pre-activation per latent and a target as wide as the input")
