"""Metrics of a model over a source, in one pass and constant memory. Formulas: docs/metrics.md."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.autoencoder import Autoencoder, HasModel, as_model
from fewfire.contracts import Batch, Source
from fewfire.rows import check_finite
from fewfire.sources import open_source

__all__ = ["Evaluation", "evaluate", "finite_rows"]


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
        ``n_rows, n_latents, mse, fvu, fvu_columns, explained_variance, l0, dead_fraction, mean_activation``. Errors
        are in data space, over every value; FVU compares with the mean of the whole set. ``fvu`` and
        ``explained_variance`` weigh columns by their variance, ``fvu_columns`` all the same.

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
        self.active_count = 0
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
        for batch in source.batches(batch_size, shuffle=False):
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
        self.target.update(x.flatten(1).cpu())
        self.highest = max(self.highest, float(x.abs().max())) if len(x) else self.highest
        error = (recon.double() - x.to(recon.device).double()).flatten(1).square().sum(0)
        self.squared_error = self.squared_error + error.cpu()
        self.activation_sum += latents.double().sum().item()
        self.active_count += int(active.sum())
        self.fired += metrics.by_latent(active).sum(0).cpu()
        highest = latents.transpose(0, 1).flatten(1).amax(1).double().cpu()
        self.largest = torch.maximum(self.largest, highest)

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
        return {
            "n_rows": self.n_rows,
            "n_latents": n_latents,
            "mse": error / n_values,
            "fvu": fvu,
            "fvu_columns": self.target.mean_unexplained(self.squared_error),
            "explained_variance": 1.0 - fvu,
            "l0": self.active_count / self.n_rows,
            "dead_fraction": int((self.fired == 0).sum()) / n_latents,
            "mean_activation": self.activation_sum / n_positions,
        }


def finite_rows(batch: Batch) -> Batch:
    """The rows of a batch that hold neither NaN nor infinity."""
    keep = torch.isfinite(batch.x_in).flatten(1).all(1) & torch.isfinite(batch.x).flatten(1).all(1)
    x_in = batch.x_in[keep]
    return Batch(x_in, x_in if batch.x is batch.x_in else batch.x[keep], batch.rows[keep])
