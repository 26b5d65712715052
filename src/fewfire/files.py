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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Layout
from fewfire.disk import (
    ModelFileError,
    atomic_write,
    canonical_json,
    fsync_folder,
    load_tensors,
    one_line,
    parse_json,
    read_metadata,
    save_tensors,
    short,
)

__all__ = ["FORMAT", "FORMAT_VERSION", "MODEL", "ModelFileError", "find_model", "load", "read_config", "save"]

FORMAT = "fewfire-model"
FORMAT_VERSION = 1
"""Raised when an older fewfire could misread a newer file; older files stay readable for ever."""

MODEL = "model.safetensors"
_COPY = "config.json"
MAX_SETTINGS = 1000
"""values in an architecture, the names of columns not counted: a model file must not ask for a million layers"""
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
    TypeError
        ``model`` is none, such as an estimator.
    ValueError
        ``provenance`` or ``estimator`` is not plain JSON, or longer than a header may be; or a weight is not finite.
    OSError
        The disk refused; the model that was there is untouched.
    """
    _check_model(model)
    if broken := _nonfinite(model):
        raise ValueError(f"a model with NaN or infinity in {broken!r} cannot be saved; train it again")
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
    save_tensors(folder / MODEL, model.state_dict(), metadata)
    atomic_write(folder / _COPY, _readable(metadata))


def _check_model(given: Any) -> None:
    if not isinstance(given, Autoencoder):
        name = type(given).__name__
        hint = "; an estimator saves itself: sae.save(path)" if hasattr(given, "save") else ""
        raise TypeError(f"expected an Autoencoder to save; got a {name}{hint}")


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
            raise ModelFileError(
                f"{path} is not a model: expected a model folder, a run folder or a .safetensors file. "
                "Pickles, which can run code, are never opened"
            )
        return path
    for file in (path / MODEL, path / "model" / MODEL):
        if file.is_file():
            return file
    if not path.is_dir():
        raise FileNotFoundError(f"there is no {path}; expected a model folder, a run folder or a .safetensors file")
    names = sorted(one_line(entry.name, 60) for entry in path.iterdir())
    unfinished = "; finish the run first: fewfire train DATA --out RUN --resume" if "checkpoints" in names else ""
    found = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    raise FileNotFoundError(
        f"there is no model in {path}: expected {MODEL} or model/{MODEL}, found {found or 'nothing'}{unfinished}"
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
        names = ", ".join(map(short, sorted(strange))) or "format_version"
        raise ModelFileError(f"{file} has a configuration with missing, unknown or wrong entries: {names:.200}")


def _build(file: Path, architecture: dict[str, Any], tensors: Mapping[str, Tensor]) -> Autoencoder:
    """A model of this architecture, filled with these tensors.

    It is first sketched on torch's meta device, where shapes cost no memory: an architecture of a billion latents is
    refused before anything is allocated.
    """
    _check_layout(file, architecture.get("layout"))
    sizes = list(_sizes(architecture))
    if len(sizes) > MAX_SETTINGS:
        raise ModelFileError(f"{file} has an architecture of {len(sizes)} settings, at most {MAX_SETTINGS} are allowed")
    for device in ("meta", "cpu"):
        try:
            with torch.device(device):
                model = Autoencoder.from_config(architecture)
        except Exception as error:  # whatever an architecture from a file runs into, the file is what is wrong
            # A user's activation may need real numbers. It gets them where no size can be beyond the file's.
            if (
                device == "meta"
                and isinstance(error, RuntimeError)
                and _largest(sizes) <= 4 * _count(tensors) + (1 << 20)
            ):
                continue
            raise ModelFileError(
                f"{file} has an architecture that cannot be built: {one_line(error) or type(error).__name__}"
            ) from error
        _check_tensors(file, model.state_dict(), tensors)
    _fill(file, model, tensors)
    if broken := _nonfinite(model):
        raise ModelFileError(f"{file} holds NaN or infinity in {broken!r}; train the model again")
    _check_preprocess(file, model)
    if strange := next(_differences(architecture, model.config()), None):
        raise ModelFileError(f"{file} has a setting that its architecture does not take as it is: {strange}")
    return model


def _check_layout(file: Path, layout: Any) -> None:
    """Refuse a layout of other things than a kind, sides and names. Whether they fit the rows, the model checks."""
    match layout:
        case {"kind": str(kind), "shape": [*shape], "columns": [*columns]} if (
            kind in get_args(get_type_hints(Layout)["kind"])
            and all(type(side) is int and side > 0 for side in shape)
            and all(type(name) is str for name in columns)
        ):
            return
    raise ModelFileError(f"{file} has a layout that is not a kind, a shape and names of columns: {short(layout)}")


def _sizes(value: Any, key: str = "") -> Iterator[int]:
    """The size that each setting may stand for, 1 where it is not a number."""
    if key == "layout":  # only repeats the shape of a row, for pictures
        return
    if key in ("d_in", "d_out") and isinstance(value, list) and all(type(side) is int for side in value):
        yield max(1, math.prod(value))  # (channels, h, w)
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _sizes(inner, str(name))
    else:
        yield max(1, value) if type(value) is int else 1


def _largest(sizes: Sequence[int]) -> int:
    """More elements than all matrices of a model have that is made of these sizes."""
    return len(sizes) * math.prod(sorted(sizes)[-2:])


def _count(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors.values())


def _differences(saved: Any, built: Any, where: str = "") -> Iterator[str]:
    """What the file says and the model does not: a setting unknown, converted or made up. What newer versions know
    beyond the file is no difference."""
    if isinstance(saved, dict) and isinstance(built, dict):
        for key, value in saved.items():
            if key in built:
                yield from _differences(value, built[key], f"{where}.{key}".strip("."))
            else:
                yield short(f"{where}.{key}".strip("."))
    elif isinstance(saved, list) and isinstance(built, list) and len(saved) == len(built):
        for i, (value, other) in enumerate(zip(saved, built, strict=True)):
            yield from _differences(value, other, f"{where}.{i}")
    elif saved != built or isinstance(saved, bool) != isinstance(built, bool):
        yield short(where)


def _check_tensors(file: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file without one of these tensors, or with another shape or dtype of it."""
    for name, like in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{file} lacks the tensor {name!r}, by its own architecture; restore it from a copy")
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ModelFileError(
                f"{file}: expected {name!r} to be {like.dtype} of shape {tuple(like.shape)}, "
                f"got {tensor.dtype} of shape {tuple(tensor.shape)}; restore it from a copy"
            )


def _fill(file: Path, model: Autoencoder, tensors: Mapping[str, Tensor]) -> None:
    """Load exactly the tensors of the model: all of them, no other."""
    missing, unknown = model.load_state_dict(tensors, strict=False)
    for what, names in (("lacks the tensor", missing), ("has the unknown tensor", unknown)):
        if names:
            raise ModelFileError(f"{file} {what} {short(names[0])}, by its own architecture; restore it from a copy")
    _check_tensors(file, model.state_dict(), tensors)  # a fitted preprocess exists only once it is loaded


def _nonfinite(model: Autoencoder) -> str | None:
    """The first learned or fitted tensor with a value that is not finite. What an activation measures may start so."""
    measured = {f"activation.{name}" for name, _ in model.activation.named_buffers()}
    for name, tensor in model.state_dict().items():
        if name in measured or not tensor.is_floating_point() or not tensor.numel():
            continue
        if not torch.stack(tensor.aminmax()).isfinite().all():  # the two pass NaN on, and take no memory
            return name
    return None


def _check_preprocess(file: Path, model: Autoencoder) -> None:
    """Refuse statistics that do not fit the rows; a preprocess takes whatever shapes it is given."""
    sides = ((model.preprocess, model.input_shape), (model.preprocess_out, model.target_shape))
    for preprocess, shape in sides:
        if preprocess is None or not preprocess.fitted:
            continue
        largest = max((tensor.numel() for tensor in preprocess.state_dict().values()), default=1)
        if largest < math.prod(shape):  # a convolution's rows may be far larger than the file
            if largest > 1:
                raise ModelFileError(f"{file} has a preprocess that does not fit its rows of {math.prod(shape)} values")
            shape = (1,) * len(shape)
        for rows in (torch.zeros(1, *shape, dtype=torch.float64), torch.ones(2, *shape, dtype=torch.float64)):
            try:
                there = preprocess(rows)
                back = preprocess.inverse(there, like=rows)
            except Exception as error:
                reason = one_line(error) or type(error).__name__
                raise ModelFileError(f"{file} has a preprocess that does not fit its rows: {reason}") from error
            if not all(y.shape == rows.shape and bool(y.isfinite().all()) for y in (there, back)):
                raise ModelFileError(f"{file} has a preprocess that does not map rows of numbers to such rows")


# ------------------------------------------------------------------------------------- the readable copy


def _renew_copy(file: Path, metadata: Mapping[str, Any]) -> None:
    """Rewrite the config.json beside ``file`` from the truth, where it says something else."""
    copy = file.with_name(_COPY)
    # Beside a file of another name, a config.json is somebody else's.
    if file.name != MODEL or not copy.is_file() or _agrees(copy, metadata):  # a pipe would block for ever
        return
    try:
        atomic_write(copy, _readable(metadata))
    except OSError as error:  # a model on a read-only disk is as good a model
        outcome = f"could not be rewritten ({error.strerror})"
    else:
        outcome = "was rewritten"
    warnings.warn(f"{copy} did not agree with {MODEL}, which is the truth, and {outcome}", stacklevel=3)


def _agrees(copy: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether a config.json says the same, in whatever layout."""
    limit = 8 * len(_readable(metadata))  # room for any layout that a person would choose
    try:
        with copy.open("rb") as file:
            text = file.read(limit)
        return len(text) < limit and canonical_json(parse_json(text)) == canonical_json(metadata)
    except (OSError, ValueError):
        return False
