"""RunConfig -> objects, and the run folder. The only place where configuration becomes something that trains.

A run folder::

    config.yaml      what was asked for, every default filled in
    model/           the trained model (files.py)
    metrics.jsonl    one line per logged step, the summary last
    checkpoints/     the last two
    report.html      for a person
"""

from __future__ import annotations

from collections.abc import Sequence
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
        section = raw
        *parents, leaf = key.split(".")
        for parent in parents:
            below = section.get(parent)
            # "model.activation.k=8" also reaches into an activation given by its name alone
            section[parent] = {"name": below} if isinstance(below, str) else dict(below or {})
            section = section[parent]
        section[leaf] = yaml.safe_load(text)
    if data:
        raw["data"] = {**(raw.get("data") or {}), **data}
    return RunConfig.model_validate(raw)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no config file {path}; expected a YAML file (fewfire config prints what it may hold)")
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ValueError(f"expected a config of at most 1 MiB; {path} has {path.stat().st_size:,} bytes")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
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
        """The data given, or those that the run was trained on.

        Raises
        ------
        ValueError
            Nothing was given, and the run does not know its data.
        """
        if data is not None:
            return open_source(data)
        if self.config is None or self.config.data.path is None:
            raise ValueError(f"{self.path} does not say what it was trained on; name the data")
        return _open(self.config.data)


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
    out.mkdir(parents=True, exist_ok=True)
    full = resolved(config, trainer)
    atomic_write(out / "config.yaml", yaml.safe_dump(full.model_dump(mode="json"), sort_keys=False))
    trainer.fit(resume=resume)
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
        "summary": trainer.summary,
    }


def _open(data: DataConfig) -> Source:
    return open_source(data.path, kind=data.kind, **data.options)
