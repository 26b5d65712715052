"""A training run on disk, whole: one verified file per checkpoint, committed by one rename."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewfire.disk import load_tensors, save_tensors

__all__ = ["latest", "load", "save"]

KEEP = 2


def save(folder: Path, step: int, groups: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> None:
    """Write ``step-N.safetensors`` and keep the last two.

    ``groups``: tensors by owner, ``{"model": {...}, "engine": {...}, "state": {...}}``. The file before is removed
    only after the new one is on disk, so a run killed at any moment finds a whole one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{group}/{name}": t for group, named in groups.items() for name, t in named.items()}
    save_tensors(folder / f"step-{step:09d}.safetensors", tensors, {"format": "fewfire-checkpoint", **metadata})
    for old in _all(folder)[:-KEEP]:
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
        The file is damaged: its checksums do not agree with its content.
    """
    tensors, metadata = load_tensors(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, metadata


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors")) if folder.is_dir() else []
