"""The loop: batches, engine, schedules, checkpoints, log."""

from fewfire.trainer.config import TrainConfig
from fewfire.trainer.loop import SparsityWarning, Trainer, TrainingError

__all__ = ["SparsityWarning", "TrainConfig", "Trainer", "TrainingError"]
