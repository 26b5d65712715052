"""Metrics of a model over a source, in one pass and constant memory. Formulas: docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Batch, Source
from fewfire.metrics.intervals import EVERYTHING, Blocks, limits
from fewfire.metrics.reconstruction import ratio
from fewfire.rows import all_finite, check_finite
from fewfire.sources import open_source

__all__ = ["LIMITED", "METRICS", "Evaluation", "Kind", "evaluate", "finite_rows", "kind_of"]

METRICS: dict[str, str] = {
    "n_rows": "rows that were measured",
    "n_latents": "features of the model",
    "mse": "squared error of the reconstruction, mean over rows and columns, in the units of the data",
    "fvu": "variance unexplained: squared error / squared distance from the mean of the rows; 0 is perfect",
    "fvu_columns": "the same for each column by itself, then averaged: no column speaks for the others by its scale",
    "explained_variance": "1 - fvu: 1 is perfect, the mean of the rows alone gives 0",
    "cosine": "between a row and its reconstruction, mean over rows: 1 is the same direction",
    "l2_ratio": "length of the reconstruction / length of the row, mean over rows: below 1 it shrinks",
    "relative_bias": "1: on average as far out as the rows; below 1, shrunk in the rows' own direction",
    "l0": "features that fire on a row, mean over rows",
    "dead_fraction": "share of the features that fired on none of the rows",
    "dense_fraction": "share of the features that fired on more than a tenth of the rows",
    "mean_activation": "mean of the latents over rows and features, silent ones included",
}
"""What each number of ``evaluate``'s dict means, in a line; its limits stand beside it."""

Kind: TypeAlias = Literal["sparse", "logistic", "normal"]

LIMITED = ("mse", "fvu", "explained_variance", "cosine", "l2_ratio", "relative_bias", "l0")
"""the numbers that have limits: ratios of two sums over rows"""
VALUES_AT_ONCE = 1 << 18
"""of targets: 2 MiB in float64, which stay in a cache while they are passed over a dozen times"""
FEWEST_ROWS, MOST_LATENTS = 64, 1 << 24
"""at once: so many rows at least, and beyond them as many as have 64 MiB of latents"""
SUMMED = ("error", "cosine", "length_ratio", "has_length", "recon_square", "product", "active", "distance")
"""what is summed of each row by block of rows, for the numbers and their limits"""


def evaluate(
    model: Autoencoder | HasModel, source: Any, *, batch_size: int = 4096, max_rows: int | None = None
) -> dict[str, float]:
    """One number each for how well and how sparsely a model describes the rows of a source.

    Parameters
    ----------
    model
        An Autoencoder, or a fitted estimator.
    source
        A Source, or whatever ``open_source`` makes one of, such as an array.
    max_rows
        Stop after this many rows; needed for an endless source.

    Returns
    -------
    dict
        ``n_rows, n_latents, mse, fvu, fvu_columns, explained_variance, cosine, l2_ratio, relative_bias, l0,
        dead_fraction, dense_fraction, mean_activation``. Errors are in data space, over every value; FVU compares with
        the mean of the whole set. ``fvu`` and ``explained_variance`` weigh columns by their variance, ``fvu_columns``
        all the same. Then the 95 % confidence limits of the names in ``LIMITED``: ``mse_low, mse_high, fvu_low, ...``,
        of which some are infinite when there is one row.

    Raises
    ------
    ValueError
        The rows do not have the model's shape, one holds NaN or infinity, or an endless source came without
        ``max_rows``; or the values are too large to square.
    """
    evaluation = Evaluation.over(as_model(model), open_source(source), batch_size=batch_size, max_rows=max_rows)
    result = evaluation.result()
    if not math.isfinite(result["mse"]) or not math.isfinite(result["fvu"]):
        raise ValueError(
            f"the squared error of these rows is not finite: values up to {evaluation.highest:.3g} are too large to "
            "square, or the model's weights are; scale the data down"
        )
    return result


class Evaluation:
    """The running sums behind ``evaluate``. A report reads ``density`` and ``largest`` from it as well."""

    def __init__(self, model: Autoencoder) -> None:
        self.model = model
        self.target = metrics.Moments()
        self.squared_error = torch.zeros((), dtype=torch.float64)
        """(D,) per column of the target"""
        self.activation_sum = 0.0
        self.sums = Blocks()
        """(G, 8) by block of rows: what ``SUMMED`` names"""
        self.offsets = Blocks()
        """(G, D) of the targets' distances from the first one; a mean far from 0 takes no digits from them"""
        self.first = torch.zeros((), dtype=torch.float64)
        """(D,) the first target"""
        self.highest = 0.0
        """largest magnitude among the targets"""
        n = model.latent_shape[0]
        self.fired = torch.zeros(n, dtype=torch.int64)
        """(L,) rows on which each latent fired"""
        self.largest = torch.full((n,), float("-inf"), dtype=torch.float64)
        """(L,) largest activation of each latent"""

    @classmethod
    def over(
        cls,
        model: Autoencoder,
        source: Source,
        *,
        batch_size: int = 4096,
        max_rows: int | None = None,
        skip_nonfinite: bool = False,
    ) -> Evaluation:
        """Take in a source. Rows that hold NaN or infinity are refused by number, or left out."""
        if source.n_rows is None and max_rows is None:
            raise ValueError("an endless source has no last row; say how many to evaluate: max_rows=100_000")
        if max_rows is not None and max_rows < 1:
            raise ValueError(f"expected max_rows of at least 1; got {max_rows}")
        model.layout.check_columns(source.layout.columns)
        evaluation = cls(model)
        fitting = max(FEWEST_ROWS, MOST_LATENTS // math.prod(model.latent_shape))
        for batch in source.batches(min(batch_size, fitting), shuffle=False):
            if skip_nonfinite:
                batch = finite_rows(batch)
                if len(batch.rows) == 0:
                    continue
            check_finite(batch.x_in, "the data", batch.rows, source.layout.columns)
            if batch.x is not batch.x_in:
                check_finite(batch.x, "the target", batch.rows)
            left = len(batch.x) if max_rows is None else max_rows - evaluation.n_rows
            evaluation.update(batch.x_in[:left], batch.x[:left])
            if evaluation.n_rows == max_rows:
                break
        if evaluation.n_rows == 0:
            raise ValueError("the source gave no rows to evaluate")
        return evaluation

    def update(self, x_in: Tensor, x: Tensor) -> None:
        """Take in (B, ...) more rows, in data space."""
        if tuple(x.shape[1:]) != self.model.target_shape and tuple(x_in.shape[1:]) == self.model.input_shape:
            raise ValueError(f"expected targets of shape {self.model.target_shape}; got {tuple(x.shape[1:])}")
        latents = self.model.encode(x_in)
        like = x_in if x_in.shape == x.shape else None
        recon = self.model.decode(latents, like=None if like is None else like.to(latents.device))
        active = self.model.activation.active(latents)
        self._compare(x.flatten(1).cpu(), recon.flatten(1).cpu(), active.flatten(1).sum(1).cpu())
        self.highest = max(self.highest, float(x.abs().max())) if len(x) else self.highest
        self.activation_sum += latents.double().sum().item()
        self.fired += metrics.by_latent(active).sum(0).cpu()
        highest = latents.transpose(0, 1).flatten(1).amax(1).double().cpu()
        self.largest = torch.maximum(self.largest, highest)

    def _compare(self, x: Tensor, recon: Tensor, n_active: Tensor) -> None:
        """Sums over (B, D) targets and reconstructions, and over the (B,) numbers of latents that fire."""
        if self.n_rows == 0 and len(x):
            self.first = x[0].double()
        self.sums.make_room(len(x))
        self.offsets.make_room(len(x))
        step = max(1, VALUES_AT_ONCE // x.shape[1])
        for rows in zip(*(torch.split(part, step) for part in (x, recon, n_active)), strict=True):
            self._compare_some(rows[0].double(), rows[1].double(), rows[2])

    def _compare_some(self, x: Tensor, recon: Tensor, n_active: Tensor) -> None:
        self.target.update(x)
        self.squared_error = self.squared_error + (recon - x).square().sum(0)
        offsets = x - self.first
        self.offsets.update(offsets)
        rows = metrics.products(x, recon)
        summed = {
            "error": rows.errors,
            "cosine": rows.cosines,
            "length_ratio": rows.length_ratios,
            "has_length": rows.have_length,
            "recon_square": rows.recon_squares,
            "product": rows.products,
            "active": n_active,
            "distance": torch.linalg.vector_norm(offsets, dim=1).square(),
        }
        self.sums.update(torch.stack([summed[name].double() for name in SUMMED], 1))

    @property
    def n_rows(self) -> int:
        return self.target.count

    @property
    def density(self) -> Tensor:
        """(L,) fraction of rows on which each latent fired."""
        return self.fired.double() / max(self.n_rows, 1)

    def result(self) -> dict[str, float]:
        n_values = self.n_rows * self.target.mean.numel()
        n_latents = len(self.fired)
        n_positions = self.n_rows * math.prod(self.model.latent_shape)
        error = float(self.squared_error.sum())
        fvu = metrics.unexplained(error, self.target.squared_deviation)
        total = dict(zip(SUMMED, self.sums.total.tolist(), strict=True))
        exact = error == 0
        found = {
            "n_rows": self.n_rows,
            "n_latents": n_latents,
            "mse": error / n_values,
            "fvu": fvu,
            "fvu_columns": self.target.mean_unexplained(self.squared_error),
            "explained_variance": 1.0 - fvu,
            "cosine": ratio(total["cosine"], total["has_length"], 1.0 if exact else 0.0),
            "l2_ratio": ratio(total["length_ratio"], total["has_length"], 1.0 if exact else math.inf),
            "relative_bias": ratio(
                total["recon_square"], total["product"], 0.0 if total["recon_square"] == 0 else math.inf
            ),
            "l0": total["active"] / self.n_rows,
            "dead_fraction": int((self.fired == 0).sum()) / n_latents,
            "dense_fraction": int((self.density > metrics.DENSE).sum()) / n_latents,
            "mean_activation": self.activation_sum / n_positions,
        }
        return {**found, **self._limits(found)}

    def _limits(self, found: Mapping[str, float]) -> dict[str, float]:
        """The limits of what ``result`` found, by the names that they have there."""
        by_block = dict(zip(SUMMED, self.sums.sums.unbind(1), strict=True))
        error, rows, deviation = by_block["error"], self.sums.rows, self._deviation_by_block()
        ratios = {
            "mse": (error, rows * self.target.mean.numel(), (0, math.inf)),
            "fvu": (error, deviation, (0, math.inf)),
            "explained_variance": (deviation - error, deviation, (-math.inf, 1)),
            "cosine": (by_block["cosine"], by_block["has_length"], (-1, 1)),
            "l2_ratio": (by_block["length_ratio"], by_block["has_length"], (0, math.inf)),
            "relative_bias": (by_block["recon_square"], by_block["product"], EVERYTHING),
            "l0": (by_block["active"], rows, (0, math.prod(self.model.latent_shape))),
        }
        given = {}
        for name in LIMITED:
            above, below, possible = ratios[name]
            given[f"{name}_low"], given[f"{name}_high"] = limits(above, below, found[name], possible)
        return given

    def _deviation_by_block(self) -> Tensor:
        """(G,) squared distances of the targets from the mean of all of them; 0 where they do not vary."""
        if self.target.squared_deviation == 0:
            return torch.zeros(len(self.sums.sums), dtype=torch.float64)
        to_mean = self.target.mean - self.first
        distances = self.sums.sums[:, SUMMED.index("distance")]
        return distances - 2 * self.offsets.sums @ to_mean + self.sums.rows * to_mean.square().sum()


def kind_of(model: Autoencoder) -> Kind:
    """How one speaks of latents: sparse ones fire or are silent, logistic ones are high or low, normal ones vary."""
    if "mean_logvar" in model.gives:
        return "normal"
    return "logistic" if "logits" in model.gives else "sparse"


def finite_rows(batch: Batch) -> Batch:
    """The rows of a batch that hold neither NaN nor infinity."""
    if all_finite(batch.x_in) and all_finite(batch.x):
        return batch
    keep = torch.isfinite(batch.x_in).flatten(1).all(1) & torch.isfinite(batch.x).flatten(1).all(1)
    x_in = batch.x_in[keep]
    return Batch(x_in, x_in if batch.x is batch.x_in else batch.x[keep], batch.rows[keep])
