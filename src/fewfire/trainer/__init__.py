"""The loop: batches, engine, schedules, checkpoints, log."""

from fewfire.trainer.complaints import complaint
from fewfire.trainer.config import TrainConfig
from fewfire.trainer.loop import SparsityWarning, Trainer, TrainingError
from fewfire.trainer.progress import say
from fewfire.trainer.signals import Interrupted
from fewfire.trainer.starting import start_activation, start_sparse

__all__ = [
    "Interrupted",
    "SparsityWarning",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "complaint",
    "say",
    "start_activation",
    "start_sparse",
]
