"""What a denoising autoencoder does to its input; the target stays clean. One class a corruption.

Vincent et al. 2010, "Stacked denoising autoencoders", section 3.3.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fewfire.contracts import Named

__all__ = ["Corruption", "GaussianNoise", "Masking", "SaltAndPepper"]


class Corruption(Named):
    """``x_in = corrupt(x)``, in model space. (B, ...) -> (B, ...). The generator is private to the step."""

    level: float

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        raise NotImplementedError

    def chosen(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """(B, ...) bool: the entries on which ``self(x, generator)`` acts, for a generator in the same state.

        Asked for by emphasis (``MSE(intact=0.5)``) alone. Override it where an entry can be chosen and keep its
        value: masking a 0 changes nothing, yet only the other columns can tell that it was one.
        """
        return self(x, generator) != x


class GaussianNoise(Corruption, name="gaussian"):
    """Adds a normal number of standard deviation ``level`` to every value."""

    def __init__(self, level: float = 0.3) -> None:
        if not 0 <= level < math.inf:
            raise ValueError(f"level is a standard deviation: expected at least 0, got {level}")
        self.level = level

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x + self.level * torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)

    def chosen(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.ones_like(x, dtype=torch.bool)  # a small number may round to no change: chosen all the same


class Masking(Corruption):
    """Sets a fraction ``level`` of the values to 0."""

    def __init__(self, level: float = 0.25) -> None:
        self.level = _fraction(level)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return x * ~self.chosen(x, generator)

    def chosen(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return _uniform(x, generator) < self.level


class SaltAndPepper(Corruption, name="salt_and_pepper"):
    """Sets a fraction ``level`` of the values to ``low`` or ``high``, each with probability one half.

    ``low``, ``high``: None for the batch's smallest and largest value.
    """

    def __init__(self, level: float = 0.25, low: float | None = None, high: float | None = None) -> None:
        if low is not None and high is not None and low >= high:
            raise ValueError(f"expected low below high; got low={low}, high={high}")
        self.level = _fraction(level)
        self.low = low
        self.high = high

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        low = x.min() if self.low is None else x.new_tensor(self.low)
        high = x.max() if self.high is None else x.new_tensor(self.high)
        u = _uniform(x, generator)
        return torch.where(u < self.level / 2, low, torch.where(u < self.level, high, x))

    def chosen(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return _uniform(x, generator) < self.level


def _fraction(level: float) -> float:
    if not 0 <= level <= 1:
        raise ValueError(f"level is a fraction of the values: expected 0 to 1, got {level}")
    return level


def _uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
