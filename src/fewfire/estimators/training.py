"""How the estimators train: in one go, or call by call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fewfire import rng
from fewfire.trainer import Trainer

__all__ = ["MAX_RECORDS", "FitTrainer", "Stream", "StreamTrainer", "thinned"]

ENOUGH = 10
"""rows on which an average latent fires, below which those that never do say nothing: two clusters of fifteen rows
need two latents, however many there are"""

MAX_RECORDS = 200
"""of history_ in a stream, and of any history_ in a file, whose header holds 1 MiB"""


STREAM_STEPS = 1500
"""steps by which target_l0 shall be reached in a stream, whose length nobody knows"""


class FitTrainer(Trainer):
    """Objects to latents that never fire only where the rows are enough to tell."""

    started = True  # by building.start

    def objections(self) -> Iterator[str]:
        firing = self.summary["n_rows"] * self.summary["l0"] / self.summary["n_latents"]
        return iter(()) if self.model.activation.exact_zeros and firing < ENOUGH else super().objections()


class StreamTrainer(Trainer):
    """One call of ``partial_fit``: steps alone, no summary. A stream that has just begun owes nothing yet."""

    started = True  # by building.start, at the first call

    def _settle(self) -> None:  # a call may bring a handful of rows: the average over many says more
        pass

    def _finish(self) -> None:
        pass


@dataclass
class Stream:
    """The states of optimiser and steering and Trainer's counters, between two calls. The model carries the rest."""

    seed: int
    calls: int = 0
    steps: int = 0
    samples: int = 0
    engine: dict[str, Tensor] = field(default_factory=dict)
    steering: dict[str, float] | None = None
    since_fired: Tensor | None = None

    def next_seed(self) -> int:
        """Of the order of the rows of the next call, and of its noise."""
        return int(torch.randint(2**31, (), generator=rng.generator(self.seed, "partial_fit", self.calls)))

    def enter(self, trainer: Trainer) -> None:
        """Let a fresh trainer go on from here."""
        if trainer.steering is not None:
            trainer.steering.pace(STREAM_STEPS)
            if self.steering is not None:
                trainer.steering.restore(self.steering)
        if self.since_fired is not None:
            trainer.engine.load_state_dict(self.engine)
            trainer.state.since_fired.copy_(self.since_fired)
            trainer.state.samples = self.samples

    def leave(self, trainer: Trainer) -> None:
        """Take over what the trainer came to."""
        self.calls += 1
        self.steps += trainer.state.step
        self.samples = trainer.state.samples
        self.engine = trainer.engine.state_dict()
        self.since_fired = trainer.state.since_fired
        self.steering = None if trainer.steering is None else trainer.steering.state()

    def on_cpu(self) -> Stream:
        """The same, where every machine can read it."""
        since = None if self.since_fired is None else self.since_fired.cpu()
        return replace(self, engine={name: t.cpu() for name, t in self.engine.items()}, since_fired=since)


def thinned(records: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """All records, or of more than ``limit`` every second one, as often as it takes; the last one always."""
    kept = list(records)
    while len(kept) > limit:
        kept = kept[(len(kept) - 1) % 2 :: 2]
    return kept
