"""A training run on disk, whole: one verified file per checkpoint, committed by one rename."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fewfire.disk import ModelFileError, fsync_folder, load_tensors, save_tensors, short, stored_size, sweep

__all__ = ["Groups", "check_room", "latest", "load", "save", "tidy"]

KEEP = 2

FORMAT = "fewfire-checkpoint"
FORMAT_VERSION = 2
"""Raised when what a checkpoint holds changes; another version's run is finished by that version."""
_FIELDS = {
    "format": str,
    "format_version": int,
    "step": int,
    "samples": int,
    "seconds": float | int,
    "skipped": int,
    "best_loss": float | int | None,
    "misses": int,
    "validation_due": bool,
    "threads": int | None,
    "steering": dict | None,
    "run": dict,
}
_GROUPS = {"model", "engine", "state", "best"}

Groups: TypeAlias = Mapping[str, Mapping[str, Tensor]]
"""tensors by owner: ``{"model": {...}, "engine": {...}, "state": {...}}``"""


def save(folder: Path, step: int, groups: Groups, metadata: Mapping[str, Any]) -> Path:
    """Write ``step-N.safetensors``, keep the last two, and return its path.

    The file before is removed only after the new one is on disk, so a run killed at any moment finds a whole one.
    """
    if not folder.is_dir():
        folder.mkdir()  # not its parents: a run folder that vanished must not come back with nothing else in it
        fsync_folder(folder.parent)
    path = folder / f"step-{step:09d}.safetensors"
    save_tensors(path, _named(groups), _described(metadata))
    tidy(folder)
    return path


def tidy(folder: Path) -> None:
    """Remove all but the last two checkpoints, and what killed writers left; what resists waits for the next time."""
    sweep(folder)
    for old in _all(folder)[:-KEEP]:
        with suppress(OSError):
            old.unlink(missing_ok=True)


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, or None."""
    files = _all(folder)
    return files[-1] if files else None


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(tensors by owner, metadata).

    Raises
    ------
    ModelFileError
        The file is damaged, no checkpoint, or another version's.
    """
    tensors, metadata = load_tensors(path)
    _check(path, metadata)
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "state": {}}
    for key, tensor in tensors.items():
        group, slash, name = key.partition("/")
        if group not in _GROUPS or not slash:
            raise ModelFileError(f"{path} has the tensor {short(key)}, which no checkpoint has; remove the file")
        groups.setdefault(group, {})[name] = tensor
    since_fired = groups["state"].get("since_fired")
    if since_fired is None or len(groups["state"]) > 1 or since_fired.dtype != torch.int64 or since_fired.ndim != 1:
        raise ModelFileError(f"{path} lacks whole numbers state/since_fired, one per latent; remove the file")
    return groups, metadata


def _check(path: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what this version cannot go on from, the most telling reason first."""
    if metadata.get("format") != FORMAT:
        raise ModelFileError(
            f"{path} is not a checkpoint: expected format {FORMAT!r}, got {short(metadata.get('format'))}"
        )
    version = metadata.get("format_version", 0)
    if type(version) is not int or version != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} is a checkpoint in format {short(version)}, this fewfire resumes format {FORMAT_VERSION}; "
            "finish the run with the fewfire that began it"
        )
    strange = metadata.keys() ^ _FIELDS.keys()
    strange |= {key for key in metadata.keys() & _FIELDS.keys() if not _is(metadata[key], _FIELDS[key])}
    if strange:
        names = ", ".join(map(short, sorted(strange)))
        raise ModelFileError(f"{path} is a checkpoint with missing, unknown or wrong entries: {names:.200}")


def _is(value: Any, kind: Any) -> bool:
    """Also: a bool is no number, and a count is not negative."""
    if isinstance(value, bool) and kind is not bool:
        return False
    return isinstance(value, kind) and (not isinstance(value, int) or value >= 0)


def check_room(folder: Path, groups: Groups, metadata: Mapping[str, Any], growth: int = 0) -> None:
    """Refuse before the first step what would fail at a checkpoint, maybe hours later.

    Parameters
    ----------
    growth
        Bytes by which the tensors will grow.

    Raises
    ------
    ValueError
        The names and settings are longer than a file's header may be.
    OSError
        The disk has too little room.
    """
    size = stored_size(_named(groups), _described(metadata)) + growth
    most = KEEP + 1  # the oldest goes only after the newest is whole
    needed = most * size - sum(path.stat().st_size for path in _all(folder))
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        reason = f"too little room: {most} checkpoints of {_megabytes(size)} need {_megabytes(needed)} more, "
        raise OSError(
            errno.ENOSPC, f"{reason}{_megabytes(free)} are free; free some space, or choose another folder", str(folder)
        )


def _megabytes(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"


def _named(groups: Groups) -> dict[str, Tensor]:
    return {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}


def _described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "format_version": FORMAT_VERSION, **metadata}


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors")) if folder.is_dir() else []
