"""What a run may be told: the sections of its configuration, and how they are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fewfire.activations import Activation
from fewfire.contracts import Named
from fewfire.corruptions import Corruption
from fewfire.disk import one_line
from fewfire.networks import Network
from fewfire.preprocess import Preprocess
from fewfire.runs.plain_yaml import MAX_CHARACTERS, MAX_DEPTH, parse_yaml
from fewfire.terms import Term
from fewfire.trainer import TrainConfig, complaint

__all__ = ["DataConfig", "ModelConfig", "RunConfig", "data_options", "load_config", "schema"]

MAX_WHOLE = 2**53
"""Whole numbers beyond are not exact everywhere, and no setting needs one."""

Spec = str | dict[str, Any]
"""A member of a family: its name, or its name with settings."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class DataConfig(_Section):
    """What to train on."""

    path: str | None = Field(None, description="a file, or a built-in name (digits, patches, world)")
    kind: str | None = Field(None, description="how to read the file; None: by its ending")
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of the source, such as a patch size; target and views: other data with as many rows",
    )
    preprocess: Spec | list[Spec] | None = Field(
        "auto", description="steps from data space to model space; auto: what suits the source; null: none"
    )
    preprocess_out: Spec | list[Spec] | None = Field(
        "auto",
        description="the same of targets, where rows have their own (options.target); auto: what suits the target; "
        "null: preprocess if target and row are of one shape, else none",
    )


class ModelConfig(_Section):
    """What to train."""

    n_latents: int | None = Field(None, ge=1, description="None: four times the input width, fewer for wide rows")
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

    @model_validator(mode="before")
    @classmethod
    def _numbers_as_given(cls, raw: Any) -> Any:
        """Before pydantic makes numbers of what are none: a switch in place of a number is a slip."""
        _check_numbers(raw)
        train = raw.get("train") if isinstance(raw, Mapping) else None
        for name, value in train.items() if isinstance(train, Mapping) else ():
            field = TrainConfig.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"train.{name}: expected no switch; got {str(value).lower()}")
        return raw

    @model_validator(mode="after")
    def _numbers_as_taken(self) -> Self:
        """Also of sections that were made before and handed over."""
        _check_numbers(self.model_dump())
        return self


def _check_numbers(settings: Any) -> None:
    for where, value in _leaves(settings, ""):
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{where}: expected a finite number; got {value}")
        if isinstance(value, int) and abs(value) > MAX_WHOLE:
            raise ValueError(f"{where}: expected a whole number of at most 2**53; got {one_line(value, 40)}")


def _leaves(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every value with its dotted place."""
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    else:
        yield where, value


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
        The file is not YAML (as `plain_yaml` reads it), a setting is not ``key=value``, a key is unknown or a value not
        of its kind. One line, with what may have been meant.
    """
    raw = _read_yaml(Path(file)) if file is not None else {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key or key.count(".") >= MAX_DEPTH:
            raise ValueError(f"expected --set key=value, such as train.steps=500; got {one_line(setting, 60)!r}")
        what = f"--set {one_line(setting, 80)}"
        raw = _with(raw, key.split("."), _value(key, text, what), RunConfig().model_dump(), what)
    for name, value in data.items():
        raw = _with(raw, ["data", name], value, RunConfig().model_dump(), f"data.{name}={value}")
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        sentence = complaint(error, RunConfig, "`fewfire config` prints")
        raise ValueError(sentence if file is None or settings else f"{file}: {sentence}") from None


def data_options(settings: Sequence[str]) -> dict[str, Any]:
    """Options of other data than those of a run, from ``data.options.NAME=VALUE`` settings; errors as `load_config`'s.

    Raises
    ------
    ValueError
        A setting is of something else: the model is trained.
    """
    for setting in settings:
        if not setting.startswith("data.options."):
            raise ValueError(f"expected --set data.options.NAME=VALUE, of DATA; got {one_line(setting, 60)!r}")
    return load_config(None, settings).data.options


def _value(key: str, text: str, what: str) -> Any:
    """The value of a ``key=value`` setting."""
    if text in (",", "|"):  # a delimiter or a decimal sign, and a sign of YAML's own
        quoted = f"--set \"{one_line(key, 80)}='{text}'\""
        raise ValueError(f"{what}: YAML takes the value for a sign of its own; in quotes it is text: {quoted}")
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{what}: the value is not YAML: {error}") from None


def _with(section: Any, keys: Sequence[str], value: Any, default: Any, setting: str) -> Any:
    """A copy of ``section`` in which the setting at ``keys`` has the value.

    ``model.activation.k`` also reaches into an activation given by its name alone, or by default;
    ``objective.1.weight`` into a list.
    """
    if not keys:
        return value
    key, *rest = keys
    if isinstance(section, list):
        if not key.isdecimal() or len(key) > 6 or int(key) >= len(section):
            raise ValueError(f"{setting}: expected a number below {len(section)} where it says {one_line(key, 40)!r}")
        changed = _with(section[int(key)], rest, value, None, setting)
        return [changed if i == int(key) else item for i, item in enumerate(section)]
    if section is None:
        section = default if isinstance(default, str) else {}
    if isinstance(section, str) and not isinstance(default, dict):
        section = {"name": section}
    if not isinstance(section, dict):
        raise ValueError(f"{setting}: there is no {one_line(key, 40)!r} in {one_line(repr(section), 60)}")
    below = default.get(key) if isinstance(default, dict) else None
    return {**section, key: _with(section.get(key), rest, value, below, setting)}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; expected a YAML file (fewfire config prints what it may hold)")
    with path.open("rb") as file:
        data = file.read(MAX_CHARACTERS + 1)
    if len(data) > MAX_CHARACTERS:
        raise ValueError(f"expected a config of at most {MAX_CHARACTERS >> 10} KiB; {path} is larger")
    try:
        raw = parse_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not YAML: line {line} is not UTF-8; save it as UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    if raw is not None and not isinstance(raw, dict):
        raise ValueError(f"expected sections (data, model, objective, train) in {path}; got a {type(raw).__name__}")
    return raw or {}
