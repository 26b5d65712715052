"""The detector's folder: ``detector.safetensors``, tensors with the settings in its header."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fewfire._version import __version__
from fewfire.anomaly.detector import Detector
from fewfire.disk import ModelFileError, fsync_folder, load_tensors, one_line, save_tensors

__all__ = ["DETECTOR", "find_detector", "load_detector", "save_detector"]

DETECTOR = "detector.safetensors"
FORMAT = "fewfire-detector"
FORMAT_VERSION = 1


def save_detector(detector: Detector, path: str | os.PathLike[str], about: dict[str, Any] | None = None) -> None:
    """Write a detector's folder, in one rename. ``about``: plain JSON values that ``load_detector`` gives back.

    Raises
    ------
    NotADirectoryError
        ``path`` is a file.
    ValueError
        ``about`` is not plain JSON.
    OSError
        The disk refused; a detector that was there is untouched.
    """
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder to save the detector in, but {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    fsync_folder(folder.parent)
    tensors, settings = detector.state()
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "fewfire_version": __version__}
    save_tensors(folder / DETECTOR, tensors, {**head, "detector": settings, "about": about or {}})


def find_detector(path: str | os.PathLike[str]) -> Path | None:
    """The file of a detector's folder or of a run's ``detector/``; None where there is none."""
    places = (Path(path) / DETECTOR, Path(path) / "detector" / DETECTOR)
    return next((place for place in places if place.is_file()), None)


def load_detector(path: str | os.PathLike[str]) -> tuple[Detector, dict[str, Any]]:
    """The detector that ``save_detector`` wrote, every byte verified, and ``about``.

    Raises
    ------
    FileNotFoundError
        There is none at ``path``.
    ModelFileError
        It is damaged, too new, or no detector.
    """
    file = find_detector(path)
    if file is None:
        raise FileNotFoundError(f"there is no detector in {path}: expected {DETECTOR} or detector/{DETECTOR}")
    tensors, head = load_tensors(file)
    if head.get("format") != FORMAT or not isinstance(head.get("about"), dict):
        raise ModelFileError(f"{file} is not a detector of fewfire")
    if head.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{file} has format version {one_line(head.get('format_version'), 20)}, this fewfire reads "
            f"{FORMAT_VERSION}; upgrade fewfire"
        )
    try:
        detector = Detector.restore(tensors, head["detector"])
        detector.check()
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, RuntimeError) as error:
        raise ModelFileError(f"{file}: its tensors do not make a detector ({one_line(error, 150)})") from error
    return detector, head["about"]
