"""What a Trainer does before the first step: a look at all of the data, and a start from some of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewfire.contracts import Batch
from fewfire.evaluation import finite_rows
from fewfire.preprocess import Center
from fewfire.rows import check_finite
from fewfire.trainer.refusals import OR_SKIP
from fewfire.trainer.signals import interruptible
from fewfire.trainer.starting import start_activation, start_dictionary

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["NOTHING_TRAINED", "check_held_out", "fit_preprocess", "start_biases"]

NOTHING_TRAINED = "stopped before the first step; nothing was trained"
ROWS_AT_ONCE = 8192
START_ROWS, START_VALUES = 1024, 1 << 24
"""at least so many rows, and beyond them as many as make so many pre-activations"""
ENDLESS_ROWS = 1 << 18
"""of a source without end, so many stand for all"""


def fit_preprocess(trainer: Trainer) -> None:
    """Fit what the model carries and was not fitted yet, on the training rows as they come.

    A source that knows its mean and scale, as an activation store does, need not be read for them.
    """
    source = interruptible(trainer.source, trainer._stop, NOTHING_TRAINED)
    most = ENDLESS_ROWS // ROWS_AT_ONCE if source.n_rows is None else None

    def batches() -> Iterator[Batch]:
        return islice(source.batches(ROWS_AT_ONCE, shuffle=False), most)

    def inputs() -> Iterator[Tensor]:
        return (_usable(trainer, b.x_in, b, "the data") for b in batches())

    def targets() -> Iterator[Tensor]:
        return (_usable(trainer, b.x, b, "the target") for b in batches())

    model, known = trainer.model, getattr(trainer.source, "mean_and_scale", None)
    if known is not None and isinstance(model.preprocess, Center) and not model.preprocess.fitted:
        model.preprocess.fit_known(*known)
    for preprocess, stream in ((model.preprocess, inputs), (model.preprocess_out, targets)):
        if preprocess is not None and not preprocess.fitted:
            preprocess.fit(stream)
    model.to(model.device)


def check_held_out(trainer: Trainer) -> None:
    """Read the held-out rows once: a bad one would be found at the end of a long epoch, or of training."""
    if trainer.validation is None:
        return
    source, n = interruptible(trainer.validation, trainer._stop, NOTHING_TRAINED), 0
    for batch in source.batches(ROWS_AT_ONCE, shuffle=False):
        _usable(trainer, batch.x_in, batch, "what is held out")
        _usable(trainer, batch.x, batch, "the target of what is held out")
        n += len(finite_rows(batch).rows)
    if n == 0:
        raise ValueError("every row that is held out holds NaN or infinity; hold out others")


def start_biases(trainer: Trainer) -> None:
    """The dictionary's middle and the activation's thresholds, from some rows."""
    source, config, model = trainer.source, trainer.config, trainer.model
    n_rows = max(START_ROWS, min(ROWS_AT_ONCE, START_VALUES // math.prod(model.latent_shape)))
    bias = model.last_bias
    trained = bias is not None and bool(bias.any())  # a model that is trained further keeps what it has learned
    rows = source.batches(min(n_rows, source.n_rows or n_rows), seed=config.seed)
    some = trainer._prepare(finite_rows(next(iter(rows))))
    if len(some.rows):
        start_dictionary(model, some.x_in, some.x)
        start_activation(model, trainer.terms.values(), some.x_in, None if trained else config.target_l0)


def _usable(trainer: Trainer, x: Tensor, batch: Batch, what: str) -> Tensor:
    """The rows of ``x`` if they are finite; those that are, if the others are to be skipped."""
    if trainer.config.on_nonfinite == "skip":
        return x[torch.isfinite(x).flatten(1).all(1)]
    try:
        check_finite(x, what, batch.rows, trainer.source.layout.columns)
    except ValueError as error:
        raise ValueError(f"{error}{OR_SKIP}") from None
    return x
