"""fewfire: sparse autoencoders, from the KL-sparse one of the textbook to today's dictionaries.

An **Autoencoder** is an encoder, an **Activation** and a decoder; a **Trainer** draws batches from a **Source** and
lowers a weighted sum of **Terms**. Names load when first used, so that ``import fewfire`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fewfire._version import __version__

if TYPE_CHECKING:
    from fewfire import metrics, plot, variational
    from fewfire.activations import (
        Activation,
        BatchTopK,
        Gated,
        Gaussian,
        JumpReLU,
        MatchingPursuit,
        Plain,
        ReLU,
        Sigmoid,
        TopK,
        WinnerTakeAll,
    )
    from fewfire.autoencoder import Autoencoder
    from fewfire.calibration import calibrate
    from fewfire.comparison import ViewShares, stability, view_shares
    from fewfire.contracts import Batch, ForwardOutput, Layout, Source, SparseCodes, TrainState
    from fewfire.conversion import load
    from fewfire.corruptions import Corruption, GaussianNoise, Masking, SaltAndPepper
    from fewfire.disk import FolderInUseError, ModelFileError
    from fewfire.estimators import (
        ContractiveAutoencoder,
        ConvolutionalAutoencoder,
        DenoisingAutoencoder,
        SparseAutoencoder,
        VariationalAutoencoder,
    )
    from fewfire.evaluation import evaluate
    from fewfire.files import save
    from fewfire.harvesting import harvest
    from fewfire.networks import Linear, Mlp, Network
    from fewfire.preprocess import Preprocess
    from fewfire.sources import ArraySource, SyntheticWorld, Views, digits, open_source, patches
    from fewfire.store import ActivationStore
    from fewfire.terms import (
        BCE,
        L1,
        MSE,
        AuxK,
        Contractive,
        GatedAux,
        GaussianKL,
        KLSparsity,
        L0Penalty,
        MatryoshkaMSE,
        Orthogonality,
        Term,
        WeightDecay,
    )
    from fewfire.trainer import Interrupted, SparsityWarning, TrainConfig, Trainer, TrainingError

_HOME = {
    "fewfire.activations": (
        "Activation",
        "BatchTopK",
        "Gated",
        "Gaussian",
        "JumpReLU",
        "MatchingPursuit",
        "Plain",
        "ReLU",
        "Sigmoid",
        "TopK",
        "WinnerTakeAll",
    ),
    "fewfire.autoencoder": ("Autoencoder",),
    "fewfire.calibration": ("calibrate",),
    "fewfire.comparison": ("ViewShares", "stability", "view_shares"),
    "fewfire.conversion": ("load",),
    "fewfire.contracts": ("Batch", "ForwardOutput", "Layout", "Source", "SparseCodes", "TrainState"),
    "fewfire.corruptions": ("Corruption", "GaussianNoise", "Masking", "SaltAndPepper"),
    "fewfire.disk": ("FolderInUseError", "ModelFileError"),
    "fewfire.estimators": (
        "ContractiveAutoencoder",
        "ConvolutionalAutoencoder",
        "DenoisingAutoencoder",
        "SparseAutoencoder",
        "VariationalAutoencoder",
    ),
    "fewfire.evaluation": ("evaluate",),
    "fewfire.files": ("save",),
    "fewfire.harvesting": ("harvest",),
    "fewfire.networks": ("Linear", "Mlp", "Network"),
    "fewfire.preprocess": ("Preprocess",),
    "fewfire.sources": ("ArraySource", "SyntheticWorld", "Views", "digits", "open_source", "patches"),
    "fewfire.store": ("ActivationStore",),
    "fewfire.terms": (
        "BCE",
        "L1",
        "MSE",
        "AuxK",
        "Contractive",
        "GatedAux",
        "GaussianKL",
        "KLSparsity",
        "L0Penalty",
        "MatryoshkaMSE",
        "Orthogonality",
        "Term",
        "WeightDecay",
    ),
    "fewfire.trainer": ("Interrupted", "SparsityWarning", "TrainConfig", "Trainer", "TrainingError"),
}
_MODULES = ("metrics", "plot", "variational")
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BCE",
    "L1",
    "MSE",
    "Activation",
    "ActivationStore",
    "ArraySource",
    "Autoencoder",
    "AuxK",
    "Batch",
    "BatchTopK",
    "Contractive",
    "ContractiveAutoencoder",
    "ConvolutionalAutoencoder",
    "Corruption",
    "DenoisingAutoencoder",
    "FolderInUseError",
    "ForwardOutput",
    "Gated",
    "GatedAux",
    "Gaussian",
    "GaussianKL",
    "GaussianNoise",
    "Interrupted",
    "JumpReLU",
    "KLSparsity",
    "L0Penalty",
    "Layout",
    "Linear",
    "Masking",
    "MatchingPursuit",
    "MatryoshkaMSE",
    "Mlp",
    "ModelFileError",
    "Network",
    "Orthogonality",
    "Plain",
    "Preprocess",
    "ReLU",
    "SaltAndPepper",
    "Sigmoid",
    "Source",
    "SparseAutoencoder",
    "SparseCodes",
    "SparsityWarning",
    "SyntheticWorld",
    "Term",
    "TopK",
    "TrainConfig",
    "TrainState",
    "Trainer",
    "TrainingError",
    "VariationalAutoencoder",
    "ViewShares",
    "Views",
    "WeightDecay",
    "WinnerTakeAll",
    "__version__",
    "calibrate",
    "digits",
    "evaluate",
    "harvest",
    "load",
    "metrics",
    "open_source",
    "patches",
    "plot",
    "save",
    "stability",
    "variational",
    "view_shares",
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
