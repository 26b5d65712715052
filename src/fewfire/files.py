"""The model folder: an Autoencoder on disk.

::

    model/
      model.safetensors    the tensors, and the whole configuration in its header: alone it is the model
      config.json          a readable copy of that configuration; written second, never needed

One rename commits a model. A crash between the two files leaves a stale copy, which the next ``load`` renews.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.disk import (
    ModelFileError,
    atomic_write,
    canonical_json,
    fsync_folder,
    load_tensors,
    parse_json,
    read_metadata,
    save_tensors,
)

__all__ = ["FORMAT", "FORMAT_VERSION", "ModelFileError", "find_model", "load", "read_config", "save"]

FORMAT = "fewfire-model"
FORMAT_VERSION = 1
"""Raised when an older fewfire could misread a newer file; older files stay readable for ever."""

_MODEL = "model.safetensors"
_COPY = "config.json"
_FIELDS = {
    "format": str,
    "format_version": int,
    "fewfire_version": str,
    "architecture": dict,
    "estimator": dict | None,
    "provenance": dict,
}


# ------------------------------------------------------------------------------------------------ writing


def save(
    model: Autoencoder,
    path: str | os.PathLike[str],
    *,
    provenance: dict[str, Any] | None = None,
    estimator: dict[str, Any] | None = None,
) -> None:
    """Write a model folder. A model already there is replaced in one step, or stays as it was.

    Parameters
    ----------
    model
        On any device.
    path
        The folder; it is made when it does not exist.
    provenance
        Where the model comes from: data, seed, versions. Plain JSON values.
    estimator
        The settings of the estimator around the model. Plain JSON values.

    Raises
    ------
    NotADirectoryError
        ``path`` is a file.
    ValueError
        ``provenance`` or ``estimator`` is not plain JSON, or longer than a header may be.
    OSError
        The disk refused; the model that was there is untouched.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to save the model in, but {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    fsync_folder(folder.parent)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "fewfire_version": __version__,
        "architecture": model.config(),
        "estimator": estimator,
        "provenance": provenance or {},
    }
    save_tensors(folder / _MODEL, model.state_dict(), metadata)
    atomic_write(folder / _COPY, _readable(metadata))


def _readable(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, indent=2, sort_keys=True, allow_nan=False) + "\n"


# ------------------------------------------------------------------------------------------------ reading


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Autoencoder:
    """The Autoencoder that :func:`save` wrote, every tensor verified.

    A ``config.json`` that differs from the model is written anew, with a warning.

    Parameters
    ----------
    path
        A model folder, a run folder, or the ``model.safetensors`` itself.
    device
        Where the model shall live.

    Raises
    ------
    FileNotFoundError
        There is no model at ``path``.
    ModelFileError
        The file is damaged, not a fewfire model, or written by a newer fewfire; or its tensors are not those
        of its architecture.
    """
    file = find_model(path)
    tensors, metadata = load_tensors(file)
    _check_metadata(file, metadata)
    model = _build(file, metadata["architecture"], tensors)
    _renew_copy(file, metadata)
    return model.to(device)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a model: architecture, estimator, provenance, versions. Its tensors are not read.

    Raises
    ------
    FileNotFoundError, ModelFileError
        As :func:`load`.
    """
    file = find_model(path)
    metadata = read_metadata(file)
    _check_metadata(file, metadata)
    return metadata


def find_model(path: str | os.PathLike[str]) -> Path:
    """The safetensors file of a model folder, of a run folder's ``model/``, or ``path`` itself.

    Raises
    ------
    FileNotFoundError
        There is none; the message says what is there instead.
    ModelFileError
        ``path`` is a file of another kind.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ModelFileError(f"{path} is not a model; expected a model folder, a run folder or a .safetensors file")
        return path
    for file in (path / _MODEL, path / "model" / _MODEL):
        if file.is_file():
            return file
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}; expected a model folder, a run folder or a .safetensors file")
    names = sorted(entry.name for entry in path.iterdir())
    unfinished = "; finish the run first: fewfire train DATA --out RUN --resume" if "checkpoints" in names else ""
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise FileNotFoundError(
        f"there is no model in {path}: expected {_MODEL} or model/{_MODEL}, found {found or 'nothing'}{unfinished}"
    )


def _check_metadata(file: Path, metadata: Mapping[str, Any]) -> None:
    """Refuse what this version cannot read, the most telling reason first."""
    if metadata.get("format") != FORMAT:
        raise ModelFileError(f"{file} is not a model: expected format {FORMAT!r}, got {metadata.get('format')!r:.60}")
    version = metadata.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ModelFileError(
            f"{file} is in format {version}, written by fewfire {metadata.get('fewfire_version')!r:.60}; "
            f"this is fewfire {__version__}, which reads up to {FORMAT_VERSION}: upgrade fewfire"
        )
    strange = metadata.keys() ^ _FIELDS.keys()
    strange |= {key for key in metadata.keys() & _FIELDS.keys() if not isinstance(metadata[key], _FIELDS[key])}
    if strange or type(version) is not int or version < 1:
        names = ", ".join(sorted(strange)) or "format_version"
        raise ModelFileError(f"{file} has a configuration with missing, unknown or wrong entries: {names:.200}")


def _build(file: Path, architecture: dict[str, Any], tensors: Mapping[str, Tensor]) -> Autoencoder:
    """A model of this architecture, filled with these tensors.

    An architecture that could be far larger than the file is first built on torch's meta device, where shapes
    cost no memory: a hostile one of a billion latents is refused before anything is allocated. Not every one,
    because the first use of that device costs a second.
    """
    stored = sum(tensor.numel() for tensor in tensors.values())
    modest = _largest_matrix(architecture) <= 4 * stored + (1 << 20)
    for device in ("cpu",) if modest else ("meta", "cpu"):
        try:
            with torch.device(device):
                model = Autoencoder.from_config(architecture)
        except Exception as error:  # whatever an architecture from a file runs into, the file is what is wrong
            if device == "meta" and "meta" in str(error):  # a user's activation may need real numbers
                continue
            reason = _first_line(error)
            raise ModelFileError(f"{file} has an architecture that cannot be built: {reason}") from error
        _fill(file, model, {name: tensor.to(device) for name, tensor in tensors.items()})
    _check_preprocess(file, model)
    return model


def _largest_matrix(architecture: Mapping[str, Any]) -> int:
    """More elements than any matrix of the model has: the product of the two largest sizes in its settings."""

    def sizes(value: Any) -> Iterator[int]:
        if type(value) is int:
            yield abs(value)
        elif isinstance(value, list) and value and all(type(size) is int for size in value):
            yield abs(math.prod(value))  # (channels, h, w)
        elif isinstance(value, dict | list):
            for inner in value.values() if isinstance(value, dict) else value:
                yield from sizes(inner)

    # The layout only repeats the shape of a row, for pictures.
    named = sizes({key: value for key, value in architecture.items() if key != "layout"})
    return math.prod(sorted(named)[-2:])


def _fill(file: Path, model: Autoencoder, tensors: Mapping[str, Tensor]) -> None:
    """Load exactly the tensors of the model: all of them, no other, in shape and dtype."""

    def check(current: Mapping[str, Tensor]) -> None:
        for name in sorted(current.keys() & tensors.keys()):
            expected, tensor = current[name], tensors[name]
            if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
                raise ModelFileError(
                    f"{file}: expected {name!r} to be {expected.dtype} of shape {tuple(expected.shape)}, "
                    f"got {tensor.dtype} of shape {tuple(tensor.shape)}; restore it from a copy"
                )

    check(model.state_dict())
    missing, unknown = model.load_state_dict(tensors, strict=False)
    for what, names in (("lacks the tensor", missing), ("has the unknown tensor", unknown)):
        if names:
            raise ModelFileError(f"{file} {what} {names[0]!r}, by its own architecture; restore it from a copy")
    check(model.state_dict())  # a fitted preprocess exists only once it is loaded


def _check_preprocess(file: Path, model: Autoencoder) -> None:
    """Refuse statistics that do not fit the rows; a preprocess takes whatever shapes it is given."""
    sides = ((model.preprocess, model.input_shape), (model.preprocess_out, model.target_shape))
    for preprocess, shape in sides:
        if preprocess is not None and preprocess.fitted:
            try:
                preprocess(torch.zeros(1, *shape))
            except (ValueError, RuntimeError) as error:
                reason = _first_line(error)
                raise ModelFileError(f"{file} has a preprocess that does not fit its rows: {reason}") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


# ------------------------------------------------------------------------------------- the readable copy


def _renew_copy(file: Path, metadata: Mapping[str, Any]) -> None:
    """Rewrite the config.json beside ``file`` from the truth, where it says something else."""
    copy = file.with_name(_COPY)
    # Beside a file of another name, a config.json is somebody else's.
    if file.name != _MODEL or not copy.exists() or _agrees(copy, metadata):
        return
    try:
        atomic_write(copy, _readable(metadata))
    except OSError as error:  # a model on a read-only disk is as good a model
        outcome = f"could not be rewritten ({error.strerror})"
    else:
        outcome = "was rewritten"
    warnings.warn(f"{copy} did not agree with {_MODEL}, which is the truth, and {outcome}", stacklevel=3)


def _agrees(copy: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether a config.json says the same, in whatever layout."""
    limit = 8 * len(_readable(metadata))  # room for any layout that a person would choose
    try:
        with copy.open("rb") as file:
            text = file.read(limit)
        return len(text) < limit and canonical_json(parse_json(text)) == canonical_json(metadata)
    except (OSError, ValueError):
        return False
