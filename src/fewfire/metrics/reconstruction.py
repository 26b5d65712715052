"""How near reconstructions are to their rows, and what is systematically wrong with them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fewfire.metrics.moments import Moments, unexplained

__all__ = [
    "Products",
    "cosine",
    "explained_variance",
    "fvu",
    "l2_ratio",
    "mse",
    "products",
    "ratio",
    "relative_bias",
    "same_shape",
]


def mse(x: Tensor, recon: Tensor) -> float:
    """Mean squared error over every row and column."""
    same_shape(x, recon)
    return (recon.double() - x.double()).square().mean().item()


def fvu(x: Tensor, recon: Tensor) -> float:
    """Fraction of variance unexplained: squared error over squared distance from the mean of the whole set.

    0 is perfect; predicting the mean of every column gives exactly 1.
    """
    same_shape(x, recon)
    moments = Moments.of(x)
    error = (recon.double() - x.double()).square().sum(0).sum()  # in the order of Moments, so that 1 is exactly 1
    return unexplained(error.item(), moments.squared_deviation)


def explained_variance(x: Tensor, recon: Tensor) -> float:
    """1 - FVU: 1 is perfect, predicting the mean of every column gives 0, worse than that is negative."""
    return 1.0 - fvu(x, recon)


def cosine(x: Tensor, recon: Tensor) -> float:
    """Mean over rows of the cosine between a row and its reconstruction, both as they are: no mean is taken off.

    A row of zeros has no direction and is left out; a reconstruction of zeros has cosine 0. Where every row is zero: 1
    if they were reproduced exactly, else 0.
    """
    rows = products(x, recon)
    return ratio(rows.cosines.sum(), rows.have_length.sum(), 1.0 if exact(rows) else 0.0)


def l2_ratio(x: Tensor, recon: Tensor) -> float:
    """Mean over rows of ``||recon|| / ||x||``: below 1, reconstructions are too short.

    A row of zeros has no ratio and is left out. Where every row is zero: 1 if they were reproduced exactly, else
    infinity.
    """
    rows = products(x, recon)
    return ratio(rows.length_ratios.sum(), rows.have_length.sum(), 1.0 if exact(rows) else float("inf"))


def relative_bias(x: Tensor, recon: Tensor) -> float:
    """``gamma = E||recon||^2 / E[x . recon]``: 1 is unbiased, below 1 reconstructions shrink.

    The factor by which reconstructions would have to be divided to come as near to the rows as scaling can bring them
    (relative reconstruction bias, Rajamanoharan et al. 2024, Gated SAE).
    Reconstructions that are all 0 have shrunk wholly: 0.
    """
    rows = products(x, recon)
    return ratio(rows.recon_squares.sum(), rows.products.sum(), 0.0 if not rows.recon_squares.any() else float("inf"))


class Products(NamedTuple):
    """What the numbers above are sums of; each (B,) float64."""

    lengths: Tensor
    """``||x||``"""
    recon_lengths: Tensor
    """``||recon||``"""
    products: Tensor
    """``x . recon``"""
    errors: Tensor
    """``||recon - x||^2``"""

    @property
    def have_length(self) -> Tensor:
        """(B,) bool: the rows that are not all 0."""
        return self.lengths != 0

    @property
    def recon_squares(self) -> Tensor:
        """(B,) ``||recon||^2``."""
        return self.recon_lengths.square()

    @property
    def cosines(self) -> Tensor:
        """(B,), 0 where a row or its reconstruction is all 0."""
        lengths = self.lengths * self.recon_lengths
        return torch.where(lengths != 0, self.products / lengths, 0.0).clamp(-1, 1)

    @property
    def length_ratios(self) -> Tensor:
        """(B,), 0 where a row is all 0."""
        return torch.where(self.have_length, self.recon_lengths / self.lengths, 0.0)


def products(x: Tensor, recon: Tensor) -> Products:
    """(B, ...) rows and their reconstructions -> what is summed of each row, in float64."""
    same_shape(x, recon)
    x, recon = x.flatten(1).double(), recon.flatten(1).double()
    length = torch.linalg.vector_norm
    return Products(
        length(x, dim=1),
        length(recon, dim=1),
        torch.linalg.vecdot(x, recon),
        length(recon - x, dim=1).square(),
    )


def exact(rows: Products) -> bool:
    """Whether every row was reproduced to the last bit."""
    return not bool(rows.errors.any())


def ratio(above: Tensor | float, below: Tensor | float, otherwise: float) -> float:
    """``above / below``; ``otherwise`` where there is nothing below."""
    return float(above) / float(below) if float(below) != 0 else otherwise


def same_shape(x: Tensor, recon: Tensor) -> None:
    if x.shape != recon.shape:
        raise ValueError(f"x and recon must have one shape; x is {tuple(x.shape)}, recon {tuple(recon.shape)}")
