"""What a checkpoint holds of a Trainer, and what a resumed run must share with the one it resumes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewfire.trainer.checkpoint import Groups
from fewfire.trainer.validation import Best

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["check_same", "growth", "identity", "restore", "snapshot"]

FREE_TO_CHANGE = {"checkpoint_every", "log_every", "device", "engine", "threads", "on_nonfinite"}
"""Settings that may differ on resume: those that do not touch the numbers, those that a machine may force, and what a
run that stopped at a bad row is told to change."""


LBFGS_HISTORY = 20
"""moves and bends of all parameters that its state grows to"""


def snapshot(trainer: Trainer) -> tuple[Groups, dict[str, Any]]:
    """(tensors by owner, all the rest): everything that the steps to come depend on."""
    groups = {
        "model": trainer.model.state_dict(),
        "engine": trainer.engine.state_dict(),
        "state": {"since_fired": trainer.state.since_fired},
        "best": trainer.best.weights,
    }
    return groups, {
        "step": trainer.state.step,
        "samples": trainer.state.samples,
        "seconds": trainer.seconds,
        "skipped": trainer.skipped,
        "best_loss": None if math.isinf(trainer.best.loss) else trainer.best.loss,
        "misses": trainer.best.misses,
        "validation_due": trainer.validation_due,
        "threads": trainer.config.threads,
        "steering": None if trainer.steering is None else trainer.steering.state(),
        "run": identity(trainer),
    }


def restore(trainer: Trainer, groups: Groups, metadata: Mapping[str, Any]) -> None:
    """Be where :func:`snapshot` was taken."""
    trainer.model.load_state_dict(groups["model"])
    trainer.engine.load_state_dict(groups.get("engine", {}))
    trainer.state.since_fired.copy_(groups["state"]["since_fired"])
    trainer.state.step, trainer.state.samples = metadata["step"], metadata["samples"]
    loss = metadata["best_loss"]
    trainer.best = Best(math.inf if loss is None else loss, metadata["misses"], dict(groups.get("best", {})))
    trainer.seconds, trainer.skipped = metadata["seconds"], metadata["skipped"]
    trainer.validation_due = metadata["validation_due"]
    if trainer.steering is not None:
        trainer.steering.restore(metadata["steering"])


def growth(trainer: Trainer) -> int:
    """Bytes by which a snapshot may still grow."""
    parameters = sum(p.numel() for p in trainer.model.parameters())
    more = 0
    if trainer.config.patience is not None and not trainer.best.weights:
        more += parameters * trainer.model.dtype.itemsize
    if trainer.config.optimizer == "lbfgs":
        now = sum(t.nbytes for t in trainer.engine.state_dict().values())
        more += max(0, 2 * LBFGS_HISTORY * 8 * parameters - now)
    return more


def identity(trainer: Trainer) -> dict[str, Any]:
    """Settings and data of a run, without what may change between its parts."""
    moving = set(trainer.config.schedules)
    if trainer.steering is not None:
        moving.add(f"{trainer.steering.label}.{trainer.steering.setting}")

    def steady(label: str, config: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in config.items() if f"{label}.{k}" not in moving}

    model = trainer.model.config()
    return {
        "train": trainer.config.model_dump(mode="json", exclude=FREE_TO_CHANGE),
        "model": {**model, "activation": steady("activation", model["activation"])},
        "terms": [steady(label, term.config()) for label, term in trainer.terms.items()],
        "corruption": trainer.corruption.config() if trainer.corruption else None,
        "data": trainer.source.fingerprint[:16],
        "validation": trainer.validation.fingerprint[:16] if trainer.validation is not None else None,
    }


def check_same(checkpoint: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to resume a run as another one.

    Raises
    ------
    ValueError
        Settings or data differ; the message names the first four differences.
    """
    found = list(_differences(before, now))
    if not found:
        return
    advice = "Train with the settings and data it was started with, or into another folder"
    if any(difference.startswith("train.steps ") for difference in found):
        advice = (
            "A run cannot be made longer or shorter, because its learning rate follows a plan for all its steps; "
            "train the other length from the start, into another folder"
        )
    raise ValueError(f"cannot resume from {checkpoint}: {'; '.join(found[:4])}. {advice}")


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    """``train.seed was 0 and is 1``, for every leaf that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(set(before) | set(now)):
            yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for i, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{path}.{i}")
    elif before != now:
        yield f"{path} was {before!r:.50} and is {now!r:.50}"
