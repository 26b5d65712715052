"""What a run may be told: the sections of its configuration, and how they are read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fewfire.activations import Activation
from fewfire.contracts import Named
from fewfire.corruptions import Corruption
from fewfire.networks import Network
from fewfire.preprocess import Preprocess
from fewfire.terms import Term
from fewfire.trainer import TrainConfig

__all__ = ["DataConfig", "ModelConfig", "RunConfig", "load_config", "schema"]

MAX_CONFIG_BYTES = 1 << 20

Spec = str | dict[str, Any]
"""A member of a family: its name, or its name with settings."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DataConfig(_Section):
    """What to train on."""

    path: str | None = Field(None, description="a file, or a built-in name (digits, patches)")
    kind: str | None = Field(None, description="how to read the file; None: by its ending")
    options: dict[str, Any] = Field(default_factory=dict, description="settings of the source, such as a patch size")
    preprocess: Spec | list[Spec] | None = Field(
        "auto", description="steps from data space to model space; auto: what suits the source; null: none"
    )


class ModelConfig(_Section):
    """What to train."""

    n_latents: int | None = Field(None, ge=1, description="None: four times the input width, at most 16,384")
    activation: Spec = Field("topk", description="{name: topk, k: 32}, sigmoid, relu, ...")
    network: Spec = Field("linear", description="{name: linear, tied: false, output: identity}")


class RunConfig(_Section):
    """Everything about a run. ``fewfire config`` prints the schema."""

    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: list[Spec] | None = Field(
        None,
        description="terms with weights, [mse, {name: kl, weight: 3}]; None: mse and the activation's usual ones",
    )
    corruption: Spec | None = Field(None, description="{name: gaussian, level: 0.3}: trains a denoiser")
    train: TrainConfig = Field(default_factory=TrainConfig)


def schema() -> dict[str, Any]:
    """The JSON Schema of a RunConfig; under "members", what may be named in it and the settings each takes."""
    families: dict[str, type[Named]] = {
        "model.activation": Activation,
        "model.network": Network,
        "objective": Term,
        "corruption": Corruption,
        "data.preprocess": Preprocess,
    }
    members = {
        where: {name: member.settings() for name, member in sorted(family.registry.items())}
        for where, family in families.items()
    }
    return {"members": members, **RunConfig.model_json_schema()}


def load_config(file: str | Path | None = None, settings: Sequence[str] = (), **data: Any) -> RunConfig:
    """A RunConfig from a YAML file, then ``key=value`` settings, then the data section's keywords.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not YAML, a setting is not ``key=value``, or (pydantic's ValidationError) a key is unknown or a
        value not of its kind.
    """
    raw = _read_yaml(Path(file)) if file is not None else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"expected --set key=value, such as train.steps=500; got {setting!r}")
        try:
            value = _parse_yaml(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {setting}: the value is not YAML: {' '.join(str(error).split())}") from None
        raw = _with(raw, key.split("."), value, RunConfig().model_dump(), f"--set {setting}")
    for name, value in data.items():
        raw = _with(raw, ["data", name], value, RunConfig().model_dump(), f"data.{name}={value}")
    return RunConfig.model_validate(raw)


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else; YAML 1.1 wants 1.0e-3 and reads the other as text."""


_FLOAT = re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _parse_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _with(section: Any, keys: Sequence[str], value: Any, default: Any, setting: str) -> Any:
    """A copy of ``section`` in which the setting at ``keys`` has the value.

    ``model.activation.k`` also reaches into an activation given by its name alone, or by default;
    ``objective.1.weight`` into a list.
    """
    if not keys:
        return value
    key, *rest = keys
    if isinstance(section, list):
        if not key.isdecimal() or int(key) >= len(section):
            raise ValueError(f"{setting}: expected a number below {len(section)} where it says {key!r}")
        changed = _with(section[int(key)], rest, value, None, setting)
        return [changed if i == int(key) else item for i, item in enumerate(section)]
    if section is None:
        section = default if isinstance(default, str) else {}
    if isinstance(section, str) and not isinstance(default, dict):
        section = {"name": section}
    if not isinstance(section, dict):
        raise ValueError(f"{setting}: there is no {key!r} in {section!r}")
    below = default.get(key) if isinstance(default, dict) else None
    return {**section, key: _with(section.get(key), rest, value, below, setting)}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; expected a YAML file (fewfire config prints what it may hold)")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"expected a config of at most 1 MiB; {path} has {path.stat().st_size:,} bytes")
    try:
        raw = _parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if raw is not None and not isinstance(raw, dict):
        raise ValueError(f"expected sections (data, model, objective, train) in {path}; got a {type(raw).__name__}")
    return raw or {}
