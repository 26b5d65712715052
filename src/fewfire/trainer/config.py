"""How to train: everything about a run that is neither data, model nor objective."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self, TypeAlias

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fewfire.contracts import Optimizer
from fewfire.trainer.complaints import InOneLine
from fewfire.trainer.schedules import arrival

__all__ = ["TrainConfig"]

Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
"""an average with 1 never forgets, and adam divides by 1 minus it"""


class TrainConfig(BaseModel, metaclass=InOneLine):
    """Settings of a Trainer. Unknown ones are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, ge=1, description="optimiser steps; this or epochs, not both")
    epochs: int | None = Field(None, ge=1, description="passes over the data. Neither: passes for about 3,000 steps")
    batch_size: int | None = Field(None, ge=1, description="rows per step. None: 256; with lbfgs all rows")
    learning_rate: float | None = Field(
        None,
        ge=0,
        description="None: 0.001 for adam, falling with the square root of the latents beyond 4,096; 1 for lbfgs",
    )
    lr_schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="linear: constant, then down to 0 over the last lr_decay of training; lbfgs: constant",
    )
    lr_warmup: float = Field(0.0, ge=0, lt=1, description="fraction of training in which the rate rises from 0")
    lr_decay: float = Field(0.2, ge=0, le=1, description="fraction of training in which it falls, when linear")
    optimizer: Literal["adam", "lbfgs"] = Field("adam", description="lbfgs: full batches of data in memory")
    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="adam's two averages")
    eps: float = Field(1e-8, gt=0, description="adam's epsilon")
    clip_norm: float | None = Field(None, gt=0, description="largest Euclidean norm of the gradient; None: no limit")
    pretrain_steps: int = Field(
        0, ge=0, description="steps for each layer of a deep network, one layer after the other, before all are trained"
    )
    seed: int = Field(0, ge=0, description="of the order of the rows, of noise and of first weights")
    checkpoint_every: int | None = Field(
        None, ge=0, description="steps between checkpoints. None: a tenth of the run; 0: only the last"
    )
    validation_fraction: float = Field(0.0, ge=0, lt=1, description="rows held out and never trained on")
    validate_every: int | None = Field(None, ge=1, description="steps between validations. None: an epoch")
    patience: int | None = Field(
        None,
        ge=1,
        description="stop after so many validations without a better loss, and keep the best weights; losses are "
        "compared once no schedule moves any more",
    )
    log_every: int | None = Field(None, ge=1, description="steps between lines of metrics.jsonl. None: a hundredth")
    dead_after: int | None = Field(
        None,
        ge=1,
        description="rows without firing after which a latent is dead. None: a tenth of all, at most 10M",
    )
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="what to do with a step that is not finite")
    device: str = Field("auto", description="auto: the GPU if there is one")
    threads: int | None = Field(
        None, ge=1, description="None: one for small steps, else as many as torch has; resumed: as before"
    )
    dtype: Literal["float32", "float64", "bfloat16"] = Field(
        "float32",
        description="of the parameters while training; bfloat16: of products alone, parameters and sums are float32",
    )
    target_l0: float | None = Field(
        None,
        gt=0,
        description="latents that shall fire per row: thresholds and the penalty are steered there; of logistic "
        "units, the sum of their mean activations",
    )
    engine: str = Field("auto", description="auto: the fastest that takes the job; autograd: the plain one")
    schedules: dict[str, list[tuple[float, float]]] = Field(
        default_factory=dict,
        description="values that change: {'kl.weight': [[0, 0], [0.1, 3]], 'activation.k': [[0, 64], [0.8, 32]]}, "
        "points of (fraction of training, value), straight lines between",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("expected steps or epochs, got both; leave one out")
        if self.patience is not None and self.validation_fraction == 0:
            raise ValueError("patience needs held-out rows; set validation_fraction, for example to 0.1")
        if self.lr_schedule == "linear" and self.optimizer == "adam" and self.lr_warmup + self.lr_decay > 1:
            raise ValueError(
                f"the rate would rise and fall at once: expected lr_warmup + lr_decay of at most 1, got "
                f"{self.lr_warmup:g} + {self.lr_decay:g}"
            )
        moving = [target for target, points in self.schedules.items() if points and arrival(points) == 1]
        if self.patience is not None and moving:
            raise ValueError(
                f"patience would never act: the schedule of {moving[0]} moves to the very end, and losses under "
                "changing values do not compare. Let it arrive earlier, or leave patience out"
            )
        for target, points in self.schedules.items():
            where = [fraction for fraction, _ in points]
            if not points or where != sorted(where) or where[0] < 0 or where[-1] > 1:
                raise ValueError(
                    f"schedule {target!r}: expected points (fraction of training, value) with fractions "
                    f"rising from 0 to 1; got {points}"
                )
        return self

    def resolve(self, n_rows: int | None, n_latents: int = 1) -> TrainConfig:
        """The same settings with every None that depends on data and model filled in. ``n_rows`` None: endless.

        Raises
        ------
        ValueError
            L-BFGS was asked for and the batch is not the whole data; or endless data came without steps.
        """
        batch_size = self._rows_per_step(n_rows)
        steps = self._total_steps(n_rows, batch_size)
        filled_in = {
            "learning_rate": {"adam": 1e-3 * min(1.0, math.sqrt(4096 / n_latents)), "lbfgs": 1.0}[self.optimizer],
            "dead_after": min(10_000_000, max(batch_size, steps * batch_size // 10)),
            "log_every": max(1, steps // 100),
            "checkpoint_every": max(1, steps // 10),
            "validate_every": max(1, steps // 100) if n_rows is None else math.ceil(n_rows / batch_size),
        }
        filled_in = {name: default for name, default in filled_in.items() if getattr(self, name) is None}
        return self.model_copy(update={"steps": steps, "epochs": None, "batch_size": batch_size, **filled_in})

    def _rows_per_step(self, n_rows: int | None) -> int:
        if self.optimizer == "lbfgs":
            if n_rows is None or (self.batch_size is not None and self.batch_size < n_rows):
                raise ValueError(
                    f"lbfgs needs the whole data as one batch; got batch_size={self.batch_size} of "
                    f"{n_rows or 'endless'} rows. Leave batch_size out, or use optimizer adam"
                )
            return n_rows
        wanted = self.batch_size or 256
        return wanted if n_rows is None else min(wanted, n_rows)

    def _total_steps(self, n_rows: int | None, batch_size: int) -> int:
        if self.steps is not None:
            return self.steps
        if n_rows is None:
            raise ValueError("an endless source has no epochs; set train.steps")
        per_epoch = math.ceil(n_rows / batch_size)
        if self.epochs is not None:
            return self.epochs * per_epoch
        goal = 400 if self.optimizer == "lbfgs" else 3000
        return max(1, math.ceil(goal / per_epoch)) * per_epoch

    def learning_rate_at(self, step: int) -> float:
        """The rate of step ``step``, counted from 0. For resolved settings."""
        if self.steps is None or self.learning_rate is None:
            raise ValueError("resolve() the settings first: the rate depends on the number of steps")
        if self.optimizer == "lbfgs":
            return self.learning_rate
        done = step / self.steps
        if done < self.lr_warmup:
            return self.learning_rate * (step + 1) / (self.lr_warmup * self.steps + 1)
        if self.lr_schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - self.lr_warmup) / (1 - self.lr_warmup)))
        if self.lr_schedule == "linear" and done > 1 - self.lr_decay:
            return self.learning_rate * (1 - done) / self.lr_decay
        return self.learning_rate

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    def resolved_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise ValueError(f"unknown device {self.device!r}; expected auto, cpu, cuda or cuda:1") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device {self.device!r}: torch sees no GPU here; set device to auto or cpu")
        return device

    def optimizer_settings(self) -> Optimizer:
        return Optimizer(self.optimizer, self.betas, self.eps, self.clip_norm)
