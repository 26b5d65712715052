"""A peer's folder, written whole or not at all, and only when what was written computes the same."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.disk import atomic_write, atomic_writer, fsync_folder, save_tensors
from fewfire.formats import selftest
from fewfire.formats.folding import rows_kept

__all__ = ["UNITS", "about", "export", "write_json", "write_pt", "write_safetensors"]

UNITS = "those of fewfire's encode: latents are in model space, after preprocessing; rows and reconstructions are data"


def export(
    model: Autoencoder,
    path: str | os.PathLike[str],
    write: Callable[[Path], None],
    read: Callable[[Path], Autoencoder],
) -> None:
    """Write a folder beside ``path``, add a self-test, read it back, and only then give it its name.

    Raises
    ------
    FileExistsError
        There is something at ``path``.
    ValueError
        What was written does not compute what ``model`` does: single precision does not hold it.
    """
    path = Path(path)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty; choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    unfinished.mkdir()
    try:
        write(unfinished)
        selftest.store(model, unfinished)
        read(unfinished)
        fsync_folder(unfinished)
        if path.is_dir():
            path.rmdir()  # empty
        unfinished.replace(path)
        fsync_folder(path.parent)
    except selftest.SelfTestError as error:
        raise ValueError(
            "the model cannot be written with its preprocess folded into weights: read back, it gives other numbers "
            f"({str(error).partition(': ')[2].partition(';')[0]}). Rows lie too far from 0 for their spread"
        ) from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def about(model: Autoencoder) -> dict[str, Any]:
    """What the export says of itself."""
    return {
        "version": __version__,
        "latent_units": UNITS,
        "rows": rows_kept(model),
        "activation": model.activation.config(),
        "preprocess": model.preprocess.config() if model.preprocess else None,
        "selftest": selftest.NAME,
    }


def write_json(file: Path, entries: Mapping[str, Any]) -> None:
    atomic_write(file, json.dumps(entries, indent=2, allow_nan=False) + "\n")


def write_safetensors(file: Path, tensors: Mapping[str, Tensor], model: Autoencoder) -> None:
    """An ordinary safetensors file, with checksums among its metadata; every tensor in the model's precision."""
    save_tensors(file, {name: tensor.to(precision(model)) for name, tensor in tensors.items()}, about(model))


def write_pt(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """A state dict, which is all that torch.load(weights_only=True) needs to accept."""
    with atomic_writer(file) as opened:
        torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, opened)


def precision(model: Autoencoder) -> torch.dtype:
    """float64 stays; narrower weights have a preprocess folded in, which they would round."""
    return torch.float64 if model.dtype == torch.float64 else torch.float32
