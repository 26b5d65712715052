"""A model from any folder that is known, ours or a peer's; and from one to the other."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import torch

from fewfire import files
from fewfire.autoencoder import Autoencoder
from fewfire.formats import PEERS, Foreign

__all__ = ["TARGETS", "convert", "is_foreign", "load", "open_foreign"]

OWN = "fewfire"
TARGETS = (OWN, *PEERS)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Autoencoder:
    """The Autoencoder in a folder: as :func:`fewfire.save` wrote it, every tensor verified, or as a peer did.

    Folders of SAELens, dictionary_learning and sparsify are told by the names of their files (docs/formats.md). Rows
    go in as that library takes them, and the latents are those that it computes.

    A ``config.json`` of ours that differs from the model is written anew, with a warning.

    Parameters
    ----------
    path
        A model folder, a run folder, or the ``model.safetensors`` itself; a peer's folder, or the weights in it.
    device
        Where the model shall live.

    Raises
    ------
    FileNotFoundError
        There is no model at ``path``.
    ModelFileError
        The file is damaged, not a model, or written by a newer version; or its tensors are not those of its
        architecture; or a peer's model is not understood to the last key, or not one that fewfire can compute.
    """
    if is_foreign(path):
        return open_foreign(path).model.to(device)
    return files.load(path, device)


def is_foreign(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a peer's; or a file the weights in one."""
    return _peer(Path(path)) is not None


def open_foreign(path: str | os.PathLike[str]) -> Foreign:
    """A peer's model with what its folder says of it.

    Raises
    ------
    FileNotFoundError
        The folder is no peer's.
    ModelFileError
        As :func:`load`.
    """
    folder = Path(path)
    peer = _peer(folder)
    if peer is None:
        raise FileNotFoundError(f"{folder} is not a folder of {', '.join(PEERS)}")
    opened: Foreign = peer.open_folder(folder if folder.is_dir() else folder.parent)
    return opened


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], to: str) -> Autoencoder:
    """Write the model in one folder as another library's, or as ours; what it was told of itself stays with it.

    Parameters
    ----------
    source
        As for :func:`load`.
    target
        A new folder.
    to
        One of ``TARGETS``.

    Returns
    -------
    model
        What was read.

    Raises
    ------
    FileExistsError
        ``target`` holds something.
    ValueError
        ``to`` is not known, or that library has no such model: the message says why.
    FileNotFoundError, ModelFileError
        As :func:`load`.
    """
    if to not in TARGETS:
        raise ValueError(f"expected one of {', '.join(TARGETS)} to convert to; got {to!r:.60}")
    target = Path(target)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise FileExistsError(f"{target} is not empty; choose another folder")
    opened = open_foreign(source) if is_foreign(source) else None
    model = files.load(source) if opened is None else opened.model
    if to != OWN:
        PEERS[to].write(model, target)
    elif opened is None:
        raise ValueError(f"{source} is fewfire's own already; copy the folder")
    else:
        files.save(model, target, provenance={"converted_from": opened.origin})
    return model


def _peer(path: Path) -> ModuleType | None:
    """Whose model is at this place: told by a pair of names, or by the name of the weights. None: ours, or nobody's."""
    if (path / files.MODEL).is_file():
        return None
    for peer in PEERS.values():
        if path.is_dir() and (path / peer.CONFIG).is_file() and (path / peer.WEIGHTS).is_file():
            return peer
        if path.name == peer.WEIGHTS and path.is_file():
            return peer
    return None
