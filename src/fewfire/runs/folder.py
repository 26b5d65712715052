"""Run folders: made by ``train``, opened by ``open_run``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fewfire import files
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.disk import atomic_write
from fewfire.runs.building import make_trainer, open_like, provenance, resolved
from fewfire.runs.config import DataConfig, RunConfig, load_config
from fewfire.sources import open_source
from fewfire.tracking import read_metrics

__all__ = ["Run", "make_trainer", "open_run", "train"]


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
        own = DataConfig() if self.config is None else self.config.data
        if own.path is not None and (data is None or (isinstance(data, str) and data == own.path)):
            return _open(own)
        if data is None:
            raise ValueError(f"{self.path} does not say what it was trained on; name the data")
        return open_like(self.model, own.options, data)

    def threshold(self, wanted: float | None = None) -> float:
        """The score above which a row is an anomaly: the one wanted, or what training rows rarely exceed.

        Raises
        ------
        ValueError
            Neither is known.
        """
        saved = self.provenance.get("score", {}).get("threshold") if wanted is None else wanted
        if not isinstance(saved, int | float):
            raise ValueError(f"{self.path} does not know which scores are usual; give --threshold")
        return float(saved)


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
    trainer = make_trainer(config, _open(config.data), folder=out, progress=progress)
    text = yaml.safe_dump(resolved(config, trainer).model_dump(mode="json"), sort_keys=False)
    with _ready_for_another_try(out):
        if not _checkpoints(out):
            atomic_write(out / "config.yaml", text)
        trainer.fit(resume=resume)
    atomic_write(out / "config.yaml", text)  # only now: had the resume been refused, the old one would still hold
    files.save(trainer.model, out / "model", provenance=provenance(trainer, config.data.path))
    return open_run(out)


@contextmanager
def _ready_for_another_try(out: Path) -> Iterator[None]:
    """Make the folder; if the work fails before its first checkpoint, leave things as they were found.

    There is then nothing to go on from, and what was left would refuse the next try.
    """
    existed = out.is_dir()
    was_empty = not existed or not any(out.iterdir())
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if was_empty and not _checkpoints(out):
            for name in ("config.yaml", "metrics.jsonl"):
                (out / name).unlink(missing_ok=True)
            if not existed:
                with suppress(OSError):
                    out.rmdir()
        raise


def _checkpoints(out: Path) -> bool:
    return (out / "checkpoints").is_dir()


def _open(data: DataConfig) -> Source:
    return open_source(data.path, kind=data.kind, **data.options)
