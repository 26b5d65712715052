"""Picture files: what they are, and their pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fewfire.sources.reading import reading

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "Form", "Pixels", "look", "picture_paths", "read_pixels"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow knows many more, and starts other programs for some."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width"""
_ORIENTATION = 0x0112

Pixels = npt.NDArray[Any]
"""(h, w) or (3, h, w), uint8 or uint16"""


@dataclass(frozen=True)
class Form:
    """How big a picture is, whether it has colours, and how fine its steps are."""

    height: int
    width: int
    grey: bool
    deep: bool = False
    """16 bits a value"""

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size if self.grey else (3, *self.size)

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint16 if self.deep else np.uint8)

    @property
    def white(self) -> int:
        """The largest value."""
        return 65535 if self.deep else 255


def picture_paths(folder: Path) -> list[Path]:
    """The pictures in a folder, told by their endings, in the order of their names; hidden files are left out."""
    found = (p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file())
    return sorted(found)


def look(path: Path) -> Form:
    """The form of a picture, from its header alone.

    Raises
    ------
    ValueError
        It is not a picture, has so many pixels that Pillow takes it for a bomb, or values without a known range.
    """
    from PIL import Image

    with warnings.catch_warnings():  # not in read_pixels, which runs in threads: filters belong to the process
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with _opened(path) as image:
            return _form(image)


def _form(image: Image) -> Form:
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) without a known range; save it as .npy")
    # Asking a PNG without EXIF would decode it; Pillow turns a TIFF itself, when it is decoded.
    sideways = "exif" in image.info or image.format == "TIFF"
    sideways = sideways and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    if sideways and image.format == "TIFF":
        image.load()
    width, height = image.size[::-1] if sideways and image.format != "TIFF" else image.size
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    return Form(height, width, grey, deep=image.mode.startswith("I"))


def read_pixels(path: Path, form: Form, *, resize: bool = False) -> Pixels:
    """The pixels of a picture in this form.

    It is turned as its EXIF orientation says. Colours become grey by ITU-R BT.601; what is transparent becomes white;
    of an animation the first frame counts. ``resize``: to the form's size, with antialiasing, whatever the picture's.

    Raises
    ------
    ValueError
        It is damaged, or its size is another and ``resize`` was not asked for.
    """
    from PIL import Image, ImageOps

    with _opened(path) as image:
        if resize and not image.mode.startswith("I"):
            image.draft(None, (2 * max(form.size), 2 * max(form.size)))  # a JPEG need not be decoded finer than that
        image = ImageOps.exif_transpose(image)
        if not resize and (image.height, image.width) != form.size:
            raise ValueError(f"expected a picture of {form.size}, got {(image.height, image.width)}")
        grey, deep = form.grey, image.mode.startswith("I")
        if deep:  # Pillow's convert() would clip to 8 bits
            image = Image.fromarray(np.asarray(image).astype(np.float32))
        else:
            image = _opaque(image).convert("L" if grey else "RGB")
        if (image.height, image.width) != form.size:
            image = image.resize((form.width, form.height), Image.Resampling.BICUBIC)
        return _in_form(np.asarray(image), form, deep)


def _in_form(values: npt.NDArray[Any], form: Form, deep: bool) -> Pixels:
    if deep:
        values = np.clip(np.rint(values), 0, 65535).astype(np.uint16)
        values = values if form.deep else (values >> 8).astype(np.uint8)
    elif form.deep:
        values = values.astype(np.uint16) * np.uint16(257)  # 255 becomes 65535
    if form.grey:
        return values
    rgb = np.broadcast_to(values[..., None], (*form.size, 3)) if values.ndim == 2 else values
    return np.ascontiguousarray(rgb.transpose(2, 0, 1))


def _opaque(image: Image) -> Image:
    from PIL import Image as pillow

    if not image.has_transparency_data:
        return image
    white = pillow.new("RGBA", image.size, "white")
    return pillow.alpha_composite(white, image.convert("RGBA"))


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    from PIL import Image, UnidentifiedImageError

    with reading(path), path.open("rb") as file:
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError:
            raise ValueError(f"it is not a picture that can be read ({', '.join(_FORMATS)})") from None
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ValueError(f"it is taken for a bomb: {error}") from None
        with image:
            yield image
