"""The preprocesses themselves, from one column at a time to all values at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.metrics import Moments
from fewfire.preprocess.family import Preprocess
from fewfire.rows import aligned

__all__ = ["Center", "ClipScale", "MinMax", "RowMean", "Standardize", "Whiten"]


@final
class Standardize(Preprocess, name="standardize"):
    """Every column to mean 0 and standard deviation 1; a constant column to 0.

    LeCun et al. 1998, "Efficient BackProp", section 4.3. The deviation is the population's (divided by n).
    """

    fitted_names = ("mean", "std")

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        moments = _moments(blocks)
        std = moments.variance.sqrt()
        return {"mean": moments.mean, "std": torch.where(_constant(std, moments.mean), 1.0, std)}

    def _forward(self, x: Tensor) -> Tensor:
        return (x - self._value("mean", x)) / self._value("std", x)

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        return y * self._value("std", y) + self._value("mean", y)


@final
class Center(Preprocess, name="center"):
    """Remove the mean of every column, then divide all by one number: columns keep their relative scales.

    Afterwards the mean squared norm of a row is its number of columns, so that one learning rate and one
    sparsity weight serve many layers of a network. Conerly et al. 2024, "Circuits Updates, April", who keep
    the mean in. Data without any spread become 0.
    """

    fitted_names = ("mean", "scale")

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        moments = _moments(blocks)
        std = moments.variance.sqrt()
        # The rounding of a constant column of 1e9 must not count as spread.
        scale = std.masked_fill(_constant(std, moments.mean), 0.0).square().mean().sqrt()
        return {"mean": moments.mean, "scale": torch.where(_constant(scale), 1.0, scale)}

    def fit_known(self, mean: Tensor, scale: Tensor) -> None:
        """Take what is known of the rows already, (*row shape) and (): a pass over a terabyte is spared."""
        self.mean, self.scale = mean.double(), torch.where(scale > 0, scale.double(), 1.0)

    def _forward(self, x: Tensor) -> Tensor:
        return (x - self._value("mean", x)) / self._value("scale", x)

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        return y * self._value("scale", y) + self._value("mean", y)


@final
class MinMax(Preprocess, name="minmax"):
    """The range seen by ``fit`` to [low, high], exactly at both ends; values outside it land outside.

    ``per_column`` gives every column its own range; otherwise one range serves all, as pixels share a unit.
    A constant column becomes ``low``.
    """

    fitted_names = ("minimum", "maximum")

    def __init__(self, low: float = 0.0, high: float = 1.0, per_column: bool = True) -> None:
        super().__init__()
        self.low, self.high, self.per_column = low, high, per_column
        _check_range("minmax", low, high)

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        # The first block broadcasts the infinities to the row shape.
        minimum = torch.tensor(torch.inf, dtype=torch.float64)
        maximum = -minimum
        for block in blocks:
            rows = block.double() if self.per_column else block.double().reshape(-1)
            minimum = torch.minimum(minimum, rows.amin(0))
            maximum = torch.maximum(maximum, rows.amax(0))
        constant = _constant(maximum - minimum, torch.maximum(minimum.abs(), maximum.abs()))
        return {"minimum": minimum, "maximum": torch.where(constant, minimum, maximum)}

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower end and width. Rounding both ends as ``x`` was rounded keeps it inside them."""
        minimum = self._value("minimum", x)
        width = self._value("maximum", x) - minimum
        return minimum, torch.where(width > 0, width, 1.0)

    def _forward(self, x: Tensor) -> Tensor:
        minimum, width = self._range(x)
        return (x - minimum) / width * (self.high - self.low) + self.low

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        minimum, width = self._range(y)
        return (y - self.low) / (self.high - self.low) * width + minimum


@final
class RowMean(Preprocess, name="row_mean"):
    """Remove from each row its own mean (of a picture: its brightness). Nothing is learned.

    ``inverse(y, like)`` adds the means of ``like``; ``inverse(y)`` leaves them at zero.
    """

    def _forward(self, x: Tensor) -> Tensor:
        return x - _row_means(x)

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        return y if like is None else y + _row_means(like)


@final
class ClipScale(Preprocess, name="clip_scale"):
    """Clip at ``n_sigma`` standard deviations of all values together, then map linearly to [low, high].

    The normalisation of the sparse autoencoder exercise (Ng et al., UFLDL tutorial, 2011), made for a sigmoid
    output. The clip is centred on the mean of all values, which is zero there because :class:`RowMean` comes
    first. What was clipped is lost: ``inverse`` gives the clipped value. Constant data become the middle.
    """

    fitted_names = ("mean", "std")

    def __init__(self, n_sigma: float = 3.0, low: float = 0.1, high: float = 0.9) -> None:
        super().__init__()
        self.n_sigma, self.low, self.high = n_sigma, low, high
        _check_range("clip_scale", low, high)
        if not 0 < n_sigma < float("inf"):
            raise ValueError(f"clip_scale needs n_sigma above 0, got {n_sigma}; 3 is usual")

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        moments = _moments(block.reshape(-1) for block in blocks)
        std = moments.variance.sqrt()
        return {"mean": moments.mean, "std": torch.where(_constant(std, moments.mean), 1.0, std)}

    def _forward(self, x: Tensor) -> Tensor:
        unit = (x - self._value("mean", x)) / (self.n_sigma * self._value("std", x))
        return (unit.clamp(-1, 1) + 1) / 2 * (self.high - self.low) + self.low

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        unit = (y - self.low) / (self.high - self.low) * 2 - 1
        return unit * (self.n_sigma * self._value("std", y)) + self._value("mean", y)


@final
class Whiten(Preprocess, name="whiten"):
    """ZCA: decorrelate the columns while changing them as little as possible: a picture stays a picture.

    Rows are flattened, centred and multiplied by ``(C + e I)^(-1/2)``, where C is their covariance and ``e``
    is ``eps`` times C's mean eigenvalue: relative, so that the unit of the data does not matter. Directions
    with much more variance than ``e`` come out with variance 1; those with less are mostly noise and are not
    blown up. ``inverse`` multiplies by the inverse matrix and is exact.

    Bell & Sejnowski 1997, "The 'independent components' of natural scenes are edge filters". Fitting takes a
    few D x D matrices of float64 and a time of D^3: good for up to a few thousand columns.
    """

    fitted_names = ("mean", "whitening", "coloring")

    def __init__(self, eps: float = 1e-2) -> None:
        super().__init__()
        self.eps = eps
        if not 0 < eps < float("inf"):
            raise ValueError(f"whiten needs eps above 0, got {eps}; 0.01 is usual, smaller whitens more and more noise")

    def _fit(self, blocks: Iterator[Tensor]) -> Mapping[str, Tensor]:
        mean, covariance = _mean_and_covariance(blocks)
        if not covariance.isfinite().all():
            raise ValueError("whiten overflowed: the covariance is not finite; scale the data down first")
        constant = _constant(covariance.diagonal().sqrt(), mean.flatten())
        covariance = covariance * ~constant * ~constant[:, None]  # what is left of those columns is rounding
        variances, directions = torch.linalg.eigh(covariance)
        variances = variances.clamp(min=0)  # rounding makes some of the zeros negative
        level = variances.mean()
        # Data without any spread: level 0, and the identity is the only sensible map.
        scales = torch.ones_like(variances) if level == 0 else (variances + self.eps * level).sqrt()
        return {
            "mean": mean,
            "whitening": (directions / scales) @ directions.T,
            "coloring": (directions * scales) @ directions.T,
        }

    def _forward(self, x: Tensor) -> Tensor:
        centred = aligned((x - self._value("mean", x)).flatten(1))
        # the matrix is symmetric; written as a linear layer, the product treats every row alike
        return F.linear(centred, self._value("whitening", x)).reshape(x.shape)

    def _inverse(self, y: Tensor, like: Tensor | None) -> Tensor:
        return (y.flatten(1) @ self._value("coloring", y)).reshape(y.shape) + self._value("mean", y)


def _moments(blocks: Iterable[Tensor]) -> Moments:
    moments = Moments()
    for block in blocks:
        moments.update(block)
    return moments


def _mean_and_covariance(blocks: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
    """(*row shape) and (D, D), float64; blocks are merged as in Moments (Chan, Golub & LeVeque 1983)."""
    count, shape = 0, torch.Size()
    mean = scatter = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        rows, shape = block.flatten(1).double(), block.shape[1:]
        total = count + len(rows)
        block_mean = rows.mean(0)
        delta, centred = block_mean - mean, rows - block_mean
        scatter = scatter + centred.T @ centred + delta.outer(delta) * (count * len(rows) / total)
        mean = mean + delta * (len(rows) / total)
        count = total
    return mean.reshape(shape), scatter / count


def _constant(spread: Tensor, size: Tensor | float = 0.0) -> Tensor:
    """Where a spread is no more than the rounding of values of this size, or vanishes in float32."""
    eps, tiny = torch.finfo(torch.float64).eps, torch.finfo(torch.float32).tiny
    return spread <= 10 * eps * torch.as_tensor(size).abs() + tiny


def _row_means(x: Tensor) -> Tensor:
    """(B, 1, ...), ready to broadcast against ``x``."""
    return x.mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def _check_range(name: str, low: float, high: float) -> None:
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"{name} needs low below high, got low={low}, high={high}")
