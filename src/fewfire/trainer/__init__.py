"""The loop: batches, engine, schedules, checkpoints, log."""

from fewfire.trainer.config import TrainConfig
from fewfire.trainer.loop import SparsityWarning, Trainer, TrainingError
from fewfire.trainer.signals import Interrupted

__all__ = ["Interrupted", "SparsityWarning", "TrainConfig", "Trainer", "TrainingError"]
