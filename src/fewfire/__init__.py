"""fewfire: sparse autoencoders, from the KL-sparse one of the textbook to today's dictionaries.

An **Autoencoder** is an encoder, an **Activation** and a decoder; a **Trainer** draws batches from a **Source** and
lowers a weighted sum of **Terms**. Names load when first used, so that ``import fewfire`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewfire._version import __version__

if TYPE_CHECKING:
    from fewfire import metrics, plot
    from fewfire.activations import Activation, ReLU, Sigmoid, TopK
    from fewfire.autoencoder import Autoencoder
    from fewfire.contracts import Batch, ForwardOutput, Layout, Source, SparseCodes, TrainState
    from fewfire.corruptions import Corruption, GaussianNoise, Masking, SaltAndPepper
    from fewfire.disk import ModelFileError
    from fewfire.evaluation import evaluate
    from fewfire.files import load, save
    from fewfire.networks import Linear, Network
    from fewfire.preprocess import Preprocess
    from fewfire.sources import ArraySource, digits, open_source, patches
    from fewfire.terms import BCE, L1, MSE, AuxK, KLSparsity, Term, WeightDecay
    from fewfire.trainer import SparsityWarning, TrainConfig, Trainer, TrainingError

_HOME = {
    "fewfire.activations": ("Activation", "ReLU", "Sigmoid", "TopK"),
    "fewfire.autoencoder": ("Autoencoder",),
    "fewfire.contracts": ("Batch", "ForwardOutput", "Layout", "Source", "SparseCodes", "TrainState"),
    "fewfire.corruptions": ("Corruption", "GaussianNoise", "Masking", "SaltAndPepper"),
    "fewfire.disk": ("ModelFileError",),
    "fewfire.evaluation": ("evaluate",),
    "fewfire.files": ("load", "save"),
    "fewfire.networks": ("Linear", "Network"),
    "fewfire.preprocess": ("Preprocess",),
    "fewfire.sources": ("ArraySource", "digits", "open_source", "patches"),
    "fewfire.terms": ("BCE", "L1", "MSE", "AuxK", "KLSparsity", "Term", "WeightDecay"),
    "fewfire.trainer": ("SparsityWarning", "TrainConfig", "Trainer", "TrainingError"),
}
_MODULES = ("metrics", "plot")
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BCE",
    "L1",
    "MSE",
    "Activation",
    "ArraySource",
    "Autoencoder",
    "AuxK",
    "Batch",
    "Corruption",
    "ForwardOutput",
    "GaussianNoise",
    "KLSparsity",
    "Layout",
    "Linear",
    "Masking",
    "ModelFileError",
    "Network",
    "Preprocess",
    "ReLU",
    "SaltAndPepper",
    "Sigmoid",
    "Source",
    "SparseCodes",
    "SparsityWarning",
    "Term",
    "TopK",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "TrainingError",
    "WeightDecay",
    "__version__",
    "digits",
    "evaluate",
    "load",
    "metrics",
    "open_source",
    "patches",
    "plot",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fewfire.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'fewfire' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE, *_MODULES})
