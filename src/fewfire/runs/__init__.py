"""RunConfig -> objects, and the run folder. The only place where configuration becomes something that trains.

A run folder::

    config.yaml      what was asked for, every default filled in
    model/           the trained model (files.py)
    metrics.jsonl    one line per logged step, the summary last
    checkpoints/     the last two
    report.html      for a person
"""

from fewfire.runs.config import DataConfig, ModelConfig, RunConfig, data_options, load_config, schema
from fewfire.runs.folder import Run, make_trainer, open_run, train

__all__ = [
    "DataConfig",
    "ModelConfig",
    "Run",
    "RunConfig",
    "data_options",
    "load_config",
    "make_trainer",
    "open_run",
    "schema",
    "train",
]
