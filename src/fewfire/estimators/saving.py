"""An estimator in a model folder: its parameters and what it learned beside the weights, in the model's own header."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fewfire import files
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Named
from fewfire.disk import ModelFileError, canonical_json, one_line, short
from fewfire.estimators.constraints import check_parameters
from fewfire.estimators.training import MAX_RECORDS, thinned
from fewfire.trainer import TrainConfig

__all__ = ["plain", "read", "write"]

HEAD_VERSION = 1
MAX_NAMES = 2 << 20
"""bytes of the names of columns in a file, whose header holds 8 MiB, quotes and accents with their escapes"""

_SHAPES = ("hidden", "input_shape")
"""parameters that are tuples, which JSON does not know"""

_FITTED = {"n_features_in": int, "n_iter": int, "names": bool | list, "history": list}


def write(estimator: Any, path: str | os.PathLike[str]) -> None:
    """The model folder of a fitted estimator.

    Raises
    ------
    NotADirectoryError, OSError
        As ``files.save``.
    ValueError
        The columns have more names than a header can hold.
    """
    names = list(map(str, getattr(estimator, "feature_names_in_", ())))
    size = len(canonical_json(names))
    if size > MAX_NAMES:
        raise ValueError(
            f"the names of {len(names):,} columns take {size:,} bytes, a model file has room for {MAX_NAMES:,}; "
            "fit on rows without names, such as X.to_numpy(), or keep the estimator with joblib"
        )
    in_layout = estimator.module_.layout.columns == tuple(names)  # there they are already: no need to say it twice
    head = {
        "class": type(estimator).__name__,
        "version": HEAD_VERSION,
        "parameters": {name: plain(value) for name, value in estimator.get_params(deep=False).items()},
        "fitted": {
            "n_features_in": estimator.n_features_in_,
            "n_iter": estimator.n_iter_,
            "names": in_layout if in_layout or not names else names,
            "history": [_finite(record) for record in thinned(estimator.history_, MAX_RECORDS)],
        },
    }
    files.save(estimator.module_, path, estimator=head)


def plain(value: Any) -> Any:
    """A parameter as JSON has it. A RandomState has no such form: None, as the next fit would have another state."""
    if isinstance(value, np.random.RandomState):
        return None
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    return value.config() if isinstance(value, Named) else value


def _finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


# ------------------------------------------------------------------------------------------------ reading


def read(cls: Any, path: str | os.PathLike[str]) -> Any:
    """The estimator that ``write`` wrote; or, around a model trained without one, the estimator that fits it.

    Raises
    ------
    FileNotFoundError, ModelFileError
        As ``files.load``; or the folder holds another estimator, or one that this version cannot read.
    """
    config = files.read_config(path)
    module = files.load(path)
    if config["estimator"] is None:
        estimator = _around(cls, module, path)
        fitted: dict[str, Any] = {"n_features_in": None, "n_iter": _passes(config["provenance"]), "history": []}
        fitted["names"] = bool(module.layout.columns) and module.layout.kind == "table"
    else:
        estimator, fitted = _from_head(cls, config["estimator"], path)
    width = math.prod(module.input_shape)
    if fitted["n_features_in"] not in (None, width):
        raise ModelFileError(f"{path}: its estimator has {fitted['n_features_in']} columns, its model {width}")
    names = module.layout.columns if fitted["names"] is True else fitted["names"]
    estimator.n_features_in_ = width
    if names and not (len(names) == width and all(isinstance(name, str) for name in names)):
        raise ModelFileError(f"{path}: expected {width} names of columns beside its estimator; got {short(names)}")
    if names:
        estimator.feature_names_in_ = np.array(names, dtype=object)
    estimator.n_iter_, estimator.history_ = fitted["n_iter"], fitted["history"]
    estimator.module_ = module.to(_device(estimator.device))
    return estimator


def _from_head(cls: Any, head: Mapping[str, Any], path: Any) -> tuple[Any, dict[str, Any]]:
    match head:
        case {"class": str(name), "version": int(version), "parameters": dict(parameters), "fitted": dict(fitted)} if (
            len(head) == 4 and version is not True and version > 0
        ):
            pass
        case _:
            raise ModelFileError(f"{path} has an estimator without class, version, parameters or fitted values")
    if name != cls.__name__:
        name = one_line(name, 60)
        raise ModelFileError(f"{path} holds a {name}, not a {cls.__name__}; load it with {name}.load")
    unknown = sorted(set(parameters) - set(cls().get_params(deep=False)))
    if version > HEAD_VERSION or unknown:
        what = f"parameters {one_line(', '.join(unknown), 100)}" if unknown else f"version {version}"
        raise ModelFileError(f"{path} has a {name} with {what}, which this fewfire does not know; upgrade fewfire")
    strange = sorted(fitted.keys() ^ _FITTED.keys())
    strange += [key for key, kind in _FITTED.items() if not isinstance(fitted.get(key), kind)]
    if not strange:
        strange += ["n_iter"] if fitted["n_iter"] < 1 else []
        strange += ["history"] if not all(isinstance(record, dict) for record in fitted["history"]) else []
    if strange:
        what = one_line(", ".join(strange), 100)
        raise ModelFileError(f"{path} has a {name} whose fitted values are missing, unknown or wrong: {what}")
    shapes = {n: tuple(parameters[n]) for n in _SHAPES if isinstance(parameters.get(n), list)}
    estimator = cls(**{**parameters, **shapes})
    try:
        check_parameters(estimator)
    except ValueError as error:
        raise ModelFileError(f"{path}: {one_line(error)}") from error
    return estimator, fitted


def _around(cls: Any, module: Autoencoder, path: Any) -> Any:
    """The estimator whose ``fit`` would build this model."""
    config = module.config()
    same_target = config["d_out"] == config["d_in"] and not config["preprocess_out"]
    parameters = cls._parameters_of(config) if same_target else None
    if parameters is None:
        raise ModelFileError(
            f"{path} holds a model that no {cls.__name__} has (activation {config['activation']['name']!r}, network "
            f"{config['network']['name']!r}{'' if same_target else ', targets of their own'}); fewfire.load gives the "
            "model itself"
        )
    return cls(**parameters)


def _passes(provenance: Mapping[str, Any]) -> int:
    """Passes over the data that a run made, by what it says of itself; at least 1."""
    try:
        per_pass = math.ceil(provenance["rows"] / provenance["train"]["batch_size"])
        return int(max(1, math.ceil(provenance["steps"] / per_pass)))
    except (KeyError, TypeError, ZeroDivisionError):
        return 1


def _device(name: str) -> torch.device:
    """Where the estimator would train, if this machine has it; else the CPU."""
    try:
        return TrainConfig(device=name).resolved_device()
    except ValueError:
        return torch.device("cpu")
