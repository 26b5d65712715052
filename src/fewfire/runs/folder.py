"""Run folders: made by ``train``, opened by ``open_run``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewfire import files
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.conversion import is_foreign, open_foreign
from fewfire.disk import LOCK, atomic_write, is_temporary, locked, sweep
from fewfire.engines import FusedEngine
from fewfire.kernels import native_missing
from fewfire.runs.building import make_trainer, open_like, provenance, resolved
from fewfire.runs.config import DataConfig, RunConfig, load_config
from fewfire.runs.plain_yaml import dump_yaml
from fewfire.sources import KINDS, open_source
from fewfire.tracking import read_metrics
from fewfire.trainer import Trainer, say

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

    def source(
        self, data: Any = None, options: Mapping[str, Any] | None = None, *, inputs_only: bool = False
    ) -> Source:
        """The data given, or those that the run was trained on; named again, they are opened as they were then.

        Parameters
        ----------
        options
            Of other data, as ``open_source`` takes them: ``{"target": "out.npy"}``.
        inputs_only
            Other data may come without targets, where the run was trained on pairs.

        Raises
        ------
        ValueError
            Nothing was given, and the run does not know its data, or they are no longer what it was trained on: a
            configuration from somebody else may name any file of this machine. Or there are options without other
            data, or no target or views in other data of a run that was trained on them.

        Warns
        -----
        UserWarning
            The data that the run was trained on are no longer what they were, and were named again.
        """
        own = DataConfig() if self.config is None else self.config.data
        if not options and own.path is not None and (data is None or _same_path(data, own.path)):
            source = _open(own)
            if self._has_changed(source):
                complaint = f"{own.path} is not, or no longer, what {self.path} was trained on"
                if data is None:
                    raise ValueError(f"{complaint}; name the data to use them all the same")
                warnings.warn(complaint, stacklevel=2)
            return source
        if data is None and options:
            raise ValueError(f"{', '.join(options)}: options are of other data than the run's own; name the data")
        if data is None:
            raise ValueError(f"{self.path} does not say what it was trained on; name the data")
        source = open_like(self.model, own.options, data, options or {})
        has_target = inputs_only or getattr(source, "has_target", False)
        if own.options.get("target") is not None and not has_target:
            raise ValueError(
                f"{self.path} was trained on pairs, and {data!s:.60} are rows without targets; name them: "
                "--set data.options.target=FILE"
            )
        if own.options.get("views") is not None and tuple(source.row_shape) != self.model.input_shape:
            raise ValueError(
                f"{self.path} was trained on views of shape {self.model.input_shape}, {data!s:.60} are rows of shape "
                f"{source.row_shape}; name the other views: --set 'data.options.views=[FILE, ...]'"
            )
        return source

    def _has_changed(self, source: Source) -> bool:
        recorded = self.provenance.get("data_fingerprint")
        if self.config is not None and self.config.train.validation_fraction:
            source, _ = source.split(self.config.train.validation_fraction, self.config.train.seed)
        return bool(recorded != source.fingerprint)

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
    """Open a run folder or a bare model folder, also a peer's (docs/formats.md).

    Raises
    ------
    FileNotFoundError
        There is no model at this place.
    ModelFileError
        It is damaged.
    """
    path = Path(path)
    if is_foreign(path):
        opened = open_foreign(path)
        return Run(path=path, model=opened.model, config=None, provenance={"converted_from": opened.origin})
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

    The configuration in it names the data, and what stands beside them, by their absolute paths, so that the run can be
    used from anywhere.

    Raises
    ------
    FileExistsError
        ``out`` holds something and ``resume`` was not asked for.
    FolderInUseError
        Somebody else is training into ``out``.
    Interrupted
        Ctrl-C or SIGTERM came; the message says how to go on.
    """
    out = Path(out)
    given = config.data.path
    if given is None:
        raise ValueError("nothing to train on: expected data.path, a file or a built-in name (digits, patches, world)")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; expected the name of a folder for the run")
    if not resume:
        _check_unused(out)
    trainer = make_trainer(config, _open(config.data), folder=out, progress=progress)
    config = config.model_copy(update={"data": _rooted(config.data)})
    settled = resolved(config, trainer)
    with _writing(out, resume):
        if not _checkpoints(out):
            atomic_write(out / "config.yaml", dump_yaml(settled.model_dump(mode="json")))
        trainer.fit(resume=resume)
        if trainer.speaks and (slow := _why_slow(trainer)) is not None:
            say(slow)
        # Only now: had the resume been refused, the old one would still hold. It may have taken over the threads.
        settled = settled.model_copy(update={"train": trainer.config})
        atomic_write(out / "config.yaml", dump_yaml(settled.model_dump(mode="json")))
        sweep(out / "model")
        files.save(trainer.model, out / "model", provenance=provenance(trainer, given))
    return open_run(out)


def _why_slow(trainer: Trainer) -> str | None:
    """A sentence where compiled kernels would have trained this model, and there are none."""
    missing = native_missing()
    if missing is None or trainer.config.engine != "auto" or FusedEngine.refuses(trainer.job) is not None:
        return None
    return f"compiled kernels would take a half to a quarter of the time, and there are none: {missing}"


@contextmanager
def _writing(out: Path, resume: bool) -> Iterator[None]:
    """Be the only writer; if the work fails before its first checkpoint, leave things as they were found.

    There is then nothing to go on from, and what was left would refuse the next try.
    """
    existed = out.is_dir()
    try:
        with locked(out):
            if not resume:
                _check_unused(out)  # somebody else may have been quicker
            was_unused = not any(_used(out))
            try:
                yield
            except BaseException:
                if was_unused and not _checkpoints(out):
                    _clear(out)
                raise
    except BaseException:
        if not existed:
            with suppress(OSError):
                out.rmdir()
        raise


def _clear(out: Path) -> None:
    with suppress(OSError):
        for name in ("config.yaml", "metrics.jsonl"):
            (out / name).unlink(missing_ok=True)
        (out / "checkpoints").rmdir()


def _check_unused(out: Path) -> None:
    if any(_used(out)):
        raise FileExistsError(f"{out} is not empty; choose another folder, or --resume to go on with the run in it")


def _used(out: Path) -> Iterator[Path]:
    """What is in the folder, but for what a killed run leaves."""
    if out.is_dir():
        yield from (path for path in out.iterdir() if path.name != LOCK and not is_temporary(path.name))


def _checkpoints(out: Path) -> bool:
    return any((out / "checkpoints").glob("step-*"))


def _same_path(data: Any, path: str) -> bool:
    return isinstance(data, str) and _absolute(data) == _absolute(path)


def _absolute(path: str) -> str:
    """The path of a file or folder from the root; a built-in name, and what does not exist, as it is."""
    if (path in KINDS and KINDS[path].accepts is None) or not Path(path).exists():
        return path
    return os.path.abspath(path)  # noqa: PTH100  # also without the ".." that Path.absolute keeps


def _rooted(data: DataConfig) -> DataConfig:
    """With every path from the root: of the data, and of their target and views."""
    beside = {name: _absolute_all(data.options[name]) for name in ("target", "views") if name in data.options}
    return data.model_copy(update={"path": _absolute_all(data.path), "options": {**data.options, **beside}})


def _absolute_all(given: Any) -> Any:
    """A path, a list of them, or ``{path: ..., option: value}``."""
    if isinstance(given, list | tuple):
        return [_absolute_all(one) for one in given]
    if isinstance(given, dict):
        return {name: _absolute_all(value) if name == "path" else value for name, value in given.items()}
    return _absolute(given) if isinstance(given, str) else given


def _open(data: DataConfig) -> Source:
    return open_source(data.path, kind=data.kind, **data.options)
