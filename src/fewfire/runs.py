"""RunConfig -> objects, and the run folder. The only place where configuration becomes something that trains.

A run folder::

    config.yaml      what was asked for, every default filled in
    model/           the trained model (files.py)
    metrics.jsonl    one line per logged step, the summary last
    checkpoints/     the last two
    report.html      for a person
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from fewfire import files
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.corruptions import Corruption
from fewfire.disk import atomic_write
from fewfire.sources import open_source
from fewfire.terms import Term
from fewfire.tracking import read_metrics
from fewfire.trainer import TrainConfig, Trainer

__all__ = [
    "DataConfig",
    "ModelConfig",
    "Run",
    "RunConfig",
    "load_config",
    "make_trainer",
    "open_run",
    "train",
]

MAX_CONFIG_BYTES = 1 << 20
MAX_DEFAULT_LATENTS = 16_384

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


# ---------------------------------------------------------------------------------------------- building


def make_trainer(
    config: RunConfig, source: Source, *, folder: Path | None = None, progress: bool | None = None
) -> Trainer:
    """Model, terms and Trainer for a configuration and its opened source."""
    width = _width(source)
    model = Autoencoder(
        source.row_shape,
        config.model.n_latents or min(4 * width, MAX_DEFAULT_LATENTS),
        config.model.activation,
        network=config.model.network,
        d_out=source.target_shape,
        preprocess=_preprocess(config.data.preprocess, source),
        layout=source.layout,
        seed=config.train.seed,
    )
    terms = None if config.objective is None else [Term.from_config(t) for t in config.objective]
    corruption = None if config.corruption is None else Corruption.from_config(config.corruption)
    return Trainer(model, source, terms, config.train, corruption=corruption, folder=folder, progress=progress)


def _width(source: Source) -> int:
    width = 1
    for size in source.row_shape:
        width *= size
    return width


def _preprocess(spec: Any, source: Source) -> Any:
    if spec != "auto":
        return spec
    suggested = getattr(source, "suggested_preprocess", None)
    return "standardize" if suggested is None else suggested


def resolved(config: RunConfig, trainer: Trainer) -> RunConfig:
    """The configuration with what the trainer made of its defaults, so that it can be run again as it stands."""
    described = trainer.model.config()
    return RunConfig(
        data=config.data.model_copy(update={"preprocess": described["preprocess"]}),
        model=ModelConfig(**{k: described[k] for k in ("n_latents", "activation", "network")}),
        objective=[term.config() for term in trainer.terms.values()],
        corruption=trainer.corruption.config() if trainer.corruption else None,
        train=trainer.config,
    )


# ------------------------------------------------------------------------------------------ run folders


@dataclass(frozen=True)
class Run:
    """A run folder, or a bare model folder, opened."""

    path: Path
    model: Autoencoder
    config: RunConfig | None
    """None for a bare model folder"""
    provenance: dict[str, Any]

    def history(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``; empty for a bare model folder."""
        log = self.path / "metrics.jsonl"
        return read_metrics(log) if log.exists() else []

    def source(self, data: Any = None) -> Source:
        """The data given, or those that the run was trained on; named again, they are opened as they were then.

        Raises
        ------
        ValueError
            Nothing was given, and the run does not know its data.
        """
        own = None if self.config is None else self.config.data
        if own is not None and own.path is not None and (data is None or (isinstance(data, str) and data == own.path)):
            return _open(own)
        if data is None:
            raise ValueError(f"{self.path} does not say what it was trained on; name the data")
        return open_source(data)


def open_run(path: str | Path) -> Run:
    """Open a run folder or a bare model folder.

    Raises
    ------
    FileNotFoundError
        There is no model at this place.
    ModelFileError
        It is damaged.
    """
    path = Path(path)
    config_file = path / "config.yaml"
    model_path = files.find_model(path)
    return Run(
        path=path,
        model=files.load(model_path),
        config=load_config(config_file) if config_file.is_file() else None,
        provenance=files.read_config(model_path).get("provenance") or {},
    )


def train(config: RunConfig, out: str | Path, *, resume: bool = False, progress: bool | None = None) -> Run:
    """Train and leave a run folder.

    Raises
    ------
    FileExistsError
        ``out`` holds something and ``resume`` was not asked for.
    """
    out = Path(out)
    if config.data.path is None:
        raise ValueError("nothing to train on: expected data.path, a file or a built-in name (digits, patches)")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; expected the name of a folder for the run")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder, or --resume to go on with the run in it")
    source = _open(config.data)
    trainer = make_trainer(config, source, folder=out, progress=progress)
    text = yaml.safe_dump(resolved(config, trainer).model_dump(mode="json"), sort_keys=False)
    made = not out.exists()
    first = made or not any(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "checkpoints").is_dir():
        atomic_write(out / "config.yaml", text)
    try:
        trainer.fit(resume=resume)
    except BaseException:
        if first and not (out / "checkpoints").is_dir():  # nothing to go on from, and in the way of the next try
            for name in ("config.yaml", "metrics.jsonl"):
                (out / name).unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    out.rmdir()
        raise
    atomic_write(out / "config.yaml", text)  # after a resume that was refused, the old one still holds
    files.save(trainer.model, out / "model", provenance=provenance(trainer, config.data.path))
    return open_run(out)


def provenance(trainer: Trainer, data: str) -> dict[str, Any]:
    """Where a model comes from; saved with it."""
    return {
        "data": data,
        "data_fingerprint": trainer.source.fingerprint,
        "rows": trainer.source.n_rows,
        "objective": [term.config() for term in trainer.terms.values()],
        "train": trainer.config.model_dump(mode="json"),
        "engine": trainer.engine_reason,
        "steps": trainer.state.step,
        "summary": {k: v if math.isfinite(v) else None for k, v in trainer.summary.items()},
    }


def _open(data: DataConfig) -> Source:
    return open_source(data.path, kind=data.kind, **data.options)
