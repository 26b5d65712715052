"""Folders of pictures: what a row is, what is read when, and pictures that cannot be read."""

from __future__ import annotations

import os
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

import fewfire as ff
from fewfire.contracts import Layout, Source
from fewfire.preprocess import whiten_1_over_f
from fewfire.sources import ImageSource, images, open_source, pictures

GREY = np.random.default_rng(0).integers(0, 256, size=(9, 6, 4), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, size=(9, 6, 4, 3), dtype=np.uint8)


def save(folder: Path, arrays: Any, suffix: str = ".png", **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{i:03}{suffix}", **options)
    return folder


def rows_of(source: Source, **kwargs: Any) -> torch.Tensor:
    batches = list(source.batches(4, **kwargs))
    numbers = torch.cat([batch.rows for batch in batches])
    return torch.cat([batch.x for batch in batches])[numbers.argsort()]


def as_row(array: np.ndarray) -> torch.Tensor:
    values = torch.from_numpy(array.astype(np.float32)) / 255
    return values if values.ndim == 2 else values.permute(2, 0, 1)


# ---------------------------------------------------------------------------------------------- whole pictures


@pytest.mark.parametrize("shuffle", [True, False])
def test_grey_pictures_are_rows_of_height_and_width(tmp_path, shuffle):
    source = open_source(save(tmp_path / "grey", GREY))
    assert isinstance(source, Source)
    assert (source.n_rows, source.row_shape, source.layout) == (9, (6, 4), Layout("image", (6, 4)))
    assert source.name == "grey"
    assert source.labels is None
    assert torch.equal(rows_of(source, shuffle=shuffle), torch.stack([as_row(picture) for picture in GREY]))
    assert next(source.batches(2)).x.dtype == torch.float32


def test_one_coloured_picture_makes_all_coloured_unless_grey_is_asked_for(tmp_path):
    folder = save(tmp_path, [COLOUR[0], *GREY[1:]])
    source = open_source(folder)
    assert source.layout == Layout("image", (3, 6, 4))
    assert torch.equal(rows_of(source)[0], as_row(COLOUR[0]))
    assert torch.equal(rows_of(source)[1], as_row(GREY[1]).expand(3, 6, 4))
    grey = open_source(folder, grey=True)
    assert grey.row_shape == (6, 4)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(rows_of(grey)[0], torch.einsum("chw,c->hw", as_row(COLOUR[0]), luma), atol=0.6 / 255)
    assert open_source(save(tmp_path / "g", GREY), grey=False).row_shape == (3, 6, 4)


def test_the_order_is_that_of_the_names_and_other_files_are_left_out(tmp_path):
    folder = save(tmp_path, GREY)
    (folder / "notes.txt").write_text("not a picture")
    (folder / "._000.png").write_bytes(b"what some systems leave beside a picture")
    (folder / "000.png").rename(folder / "zzz.PNG")
    assert [path.name for path in open_source(folder).paths][-2:] == ["008.png", "zzz.PNG"]
    assert torch.equal(rows_of(open_source(folder))[8], as_row(GREY[0]))


def test_subfolders_are_classes(tmp_path):
    save(tmp_path / "cats", GREY[:3])
    save(tmp_path / "ants", GREY[3:5])
    (tmp_path / "empty").mkdir()
    (tmp_path / ".cache").mkdir()
    source = open_source(tmp_path)
    assert source.classes == ("ants", "cats")
    assert source.labels.tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(rows_of(source), torch.stack([as_row(GREY[i]) for i in (3, 4, 0, 1, 2)]))
    save(tmp_path, GREY[:1])
    with pytest.raises(ValueError, match=r"holds pictures, '000\.png', and so does its subfolder 'ants'"):
        open_source(tmp_path)


def test_resuming_and_splitting(tmp_path):
    source = open_source(save(tmp_path, GREY))
    full = list(source.batches(2, seed=3, epoch=1))
    tail = list(open_source(tmp_path).batches(2, seed=3, epoch=1, start=2))
    assert all(torch.equal(a.x, b.x) for a, b in zip(full[2:], tail, strict=True))
    rest, part = source.split(0.3, seed=1)
    assert (rest.n_rows, part.n_rows) == (6, 3)
    for batch in part.batches(2):
        assert torch.equal(batch.x, rows_of(source)[batch.rows])


def test_16_bits_are_kept(tmp_path):
    fine = np.arange(24, dtype=np.uint16).reshape(6, 4) * 2731
    source = open_source(save(tmp_path, [fine, GREY[0]]))
    assert torch.equal(rows_of(source)[0], torch.from_numpy(fine.astype(np.float32)) / 65535)
    assert torch.equal(rows_of(source)[1], as_row(GREY[0]))
    Image.fromarray(fine).save(tmp_path / "000.tif")
    (tmp_path / "000.png").unlink()
    assert torch.equal(rows_of(open_source(tmp_path))[0], torch.from_numpy(fine.astype(np.float32)) / 65535)


def test_palettes_and_alpha(tmp_path):
    palette = Image.fromarray(COLOUR[0]).quantize(24)
    palette.save(tmp_path / "0.png")
    alpha = np.dstack([COLOUR[1], np.full((6, 4), 255, np.uint8)])
    alpha[:, :2, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "1.png")
    rows = rows_of(open_source(tmp_path))
    assert torch.equal(rows[0], as_row(np.asarray(palette.convert("RGB"))))
    assert (rows[1][:, :, :2] == 1).all(), "what is transparent is white"
    assert torch.equal(rows[1][:, :, 2:], as_row(COLOUR[1])[:, :, 2:])


def test_black_and_white_and_the_first_frame(tmp_path):
    bits = Image.fromarray(np.eye(6, dtype=np.uint8) * 255).convert("1")
    bits.save(tmp_path / "0.png")
    frames = [Image.fromarray(np.full((6, 6), value, np.uint8)) for value in (51, 204)]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    rows = rows_of(open_source(tmp_path, grey=True))
    assert torch.equal(rows[0], torch.eye(6))
    assert torch.allclose(rows[1], torch.tensor(0.2))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_as_its_orientation_says(tmp_path, suffix, orientation):
    stored = np.zeros((8, 16), np.uint8)
    stored[:, 8:] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(stored).save(tmp_path / f"0{suffix}", exif=exif, **options)
    turned = {1: stored, 3: stored[:, ::-1], 6: np.rot90(stored, -1), 8: np.rot90(stored)}[orientation]
    source = open_source(tmp_path, grey=True)
    assert source.row_shape == turned.shape
    assert torch.allclose(rows_of(source)[0], torch.from_numpy(turned / 255).float(), atol=0.02)


def test_a_png_is_not_decoded_to_learn_its_size(tmp_path, monkeypatch):
    save(tmp_path, GREY)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: 1 / 0)
    assert open_source(tmp_path).n_rows == 9


# ---------------------------------------------------------------------------------------------- resizing


def test_pictures_of_several_sizes_need_a_size(tmp_path):
    folder = save(tmp_path, [GREY[0], GREY[1].T])
    with pytest.raises(ValueError, match=r"000\.png is 6 x 4, 001\.png 4 x 6 \(height x width\); resize"):
        open_source(folder)
    for size in (5, [5, 5], (5, 5)):
        assert open_source(folder, size=size).row_shape == (5, 5)
    assert open_source(folder, size=[3, 2]).row_shape == (3, 2)
    assert open_source(folder, size=[3, 2], grey=False).row_shape == (3, 3, 2)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_resizing_does_not_alias(tmp_path, suffix):
    """Stripes of one pixel become grey when made small, not black or white."""
    stripes = np.zeros((256, 256), np.uint8)
    stripes[:, ::2] = 254
    save(tmp_path, [stripes], suffix)
    small = rows_of(open_source(tmp_path, size=16))[0]
    assert torch.allclose(small, torch.tensor(127 / 255), atol=0.02)


def test_16_bits_are_kept_when_resized(tmp_path):
    save(tmp_path, [np.full((8, 8), 1001, np.uint16)])
    assert torch.allclose(rows_of(open_source(tmp_path, size=4)), torch.tensor(1001 / 65535))


def test_resized_rows_are_the_same_at_every_asking(tmp_path, monkeypatch):
    folder = save(tmp_path, np.random.default_rng(0).integers(0, 256, (5, 64, 48, 3), dtype=np.uint8), ".jpg")
    kept = rows_of(open_source(folder, size=7))
    monkeypatch.setattr(images, "KEPT_BYTES", 0)
    source = open_source(folder, size=7)
    assert torch.equal(rows_of(source), kept)
    assert torch.equal(rows_of(source, shuffle=False), kept)


# ---------------------------------------------------------------------------------------------- reading


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    found: list[str] = []
    read = pictures.read_pixels

    def spy(path: Path, form: pictures.Form, *, resize: bool = False) -> Any:
        found.append(path.name)
        return read(path, form, resize=resize)

    monkeypatch.setattr(images, "read_pixels", spy)
    return found


def test_pictures_are_read_when_a_batch_needs_them_and_kept(tmp_path, reads):
    source = open_source(save(tmp_path, GREY))
    assert reads == []
    batches = source.batches(2, shuffle=False)
    next(batches)
    batches.close()
    assert len(reads) <= 4, "one batch ahead at most"
    rows_of(source)
    rows_of(source.split(0.5)[0])
    rows_of(source)
    assert sorted(reads) == [f"{i:03}.png" for i in range(9)], "each once"


def test_pictures_that_do_not_fit_are_read_again(tmp_path, reads, monkeypatch):
    monkeypatch.setattr(images, "KEPT_BYTES", 9 * 6 * 4 - 1)
    source = open_source(save(tmp_path, GREY))
    assert torch.equal(rows_of(source), rows_of(source))
    assert len(reads) == 18


def test_pictures_are_read_while_the_batch_before_is_used(tmp_path, monkeypatch):
    threads = []
    read = pictures.read_pixels
    monkeypatch.setattr(
        images, "read_pixels", lambda *a, **k: (threads.append(threading.current_thread()), read(*a, **k))[1]
    )
    rows_of(open_source(save(tmp_path, GREY)))
    assert threading.main_thread() not in threads


def test_no_thread_outlives_its_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "KEPT_BYTES", 0)
    before = threading.active_count()
    source = open_source(save(tmp_path, GREY))
    for _ in source.batches(2):
        break
    batches = source.batches(2)
    next(batches)
    del batches
    rows_of(source)
    assert threading.active_count() == before


def test_fingerprint_follows_pictures_form_and_order(tmp_path, monkeypatch):
    folder = save(tmp_path / "a", GREY)
    prints = {
        open_source(folder).fingerprint,
        open_source(folder, grey=False).fingerprint,
        open_source(folder, size=3).fingerprint,
        open_source(folder, size=[6, 4]).fingerprint,
        *(part.fingerprint for part in open_source(folder).split(0.5)),
        open_source(save(tmp_path / "b", GREY[::-1])).fingerprint,
        open_source(save(tmp_path / "c", GREY[1:])).fingerprint,
    }
    assert len(prints) == 8
    assert open_source(save(tmp_path / "d", GREY)).fingerprint in prints, "a copy is the same data"
    monkeypatch.setattr(images, "WHOLE_BYTES", 10)
    first = open_source(folder).fingerprint
    os.utime(folder / "000.png", (1, 1))
    assert open_source(folder).fingerprint != first, "the time stands for the content of many pictures"


# ---------------------------------------------------------------------------------------------- patches


def big(n: int = 3, *shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, size=(n, *(shape or (30, 24))), dtype=np.uint8)


def test_patches_are_cut_from_grey_pictures_as_the_built_in_ones_are(tmp_path):
    folder = save(tmp_path, big())
    for whiten in (True, False):
        source = open_source(folder, patch=5, n=200, whiten=whiten, seed=3)
        built_in = ff.patches(size=5, n=200, whiten=whiten, seed=3, images=[p / 255 for p in big()])
        assert (source.row_shape, source.layout) == ((5, 5), Layout("image", (5, 5)))
        assert torch.equal(rows_of(source).flatten(1), rows_of(built_in))
    assert open_source(folder, patch=5, n=20).fingerprint == open_source(folder, patch=5, n=20, whiten=True).fingerprint
    assert open_source(folder, patch=5).n_rows == 50_000


def test_patches_of_colour_have_three_channels(tmp_path):
    array = big(3, 30, 24, 3)
    folder = save(tmp_path, array)
    rows = rows_of(open_source(folder, patch=5, n=200))
    assert rows.shape == (200, 3, 5, 5)
    found = np.lib.stride_tricks.sliding_window_view(array[:, 5:-5, 5:-5] / np.float64(255), (5, 5), axis=(1, 2))
    every = {window.astype(np.float32).tobytes() for window in found.reshape(-1, 3, 5, 5)}
    assert {row.numpy().tobytes() for row in rows} <= every
    white = rows_of(open_source(folder, patch=5, n=200, whiten=True))
    whole = np.stack([whiten_1_over_f(array[0, :, :, c]) for c in range(3)])[:, 5:-5, 5:-5].astype(np.float32)
    assert any(np.isin(row.numpy().ravel(), whole).all() for row in white)
    assert open_source(folder, patch=5, n=7, grey=True).row_shape == (5, 5)


def test_pictures_of_all_sizes_give_patches_and_none_is_held_longer_than_it_is_cut(tmp_path, reads):
    save(tmp_path, [big()[0], big()[1].T, big(1, 200, 150)[0]])
    source = open_source(tmp_path, patch=8, n=2000)
    assert sorted(reads) == ["000.png", "001.png", "002.png"]
    assert source.n_rows == 2000


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "sides of 1 to 16384"),
        ({"size": [4]}, r"whole number or \[height, width\]"),
        ({"size": [4, 4, 4]}, r"whole number or \[height, width\]"),
        ({"size": "4"}, r"whole number or \[height, width\]"),
        ({"size": 10**9}, "sides of 1 to 16384"),
        ({"size": 5000}, "pictures of 5000 x 5000 would be rows of 25,000,000 values"),
        ({"size": 4, "patch": 4}, "give size, for whole pictures, or patch"),
        ({"n": 10}, "for patches; give patch=8"),
        ({"whiten": False}, "for patches; give patch=8"),
        ({"seed": 0}, "for patches; give patch=8"),
        ({"patch": 8}, r"pictures of 18 or more, got \(6, 4\) \(.*000\.png\)"),
        ({"patch": 0}, "at least 1"),
        ({"patch": 2, "n": 0}, "at least 1"),
        ({"patch": "8"}, "at least 1"),
        ({"patch": 2, "n": 10**13}, "do not fit in memory"),
        ({"grey": "no"}, "to be true or false, got 'no' and None"),
        ({"patch": 2, "whiten": "yes"}, "to be true or false"),
        ({"pach": 8}, "has no option 'pach'; it takes: size, grey, patch, n, whiten, seed"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        open_source(save(tmp_path, GREY), **options)


def test_folders_without_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty; expected a built-in name"):
        open_source(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no pictures in .* or its subfolders; looked for \.bmp"):
        open_source(tmp_path, kind="images")
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        open_source(tmp_path / "x.png", kind="images")


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunk(*c) for c in chunks) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture that can be read"),
        (b"text in a file of the wrong name", "not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture that can be read"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged"),
        (png(100_000, 100_000, (b"IDAT", b"")), "taken for a bomb: Image size \\(10000000000 pixels\\)"),
        (png(12_000, 12_000, (b"IDAT", b"")), "taken for a bomb: Image size \\(144000000 pixels\\)"),
        (png(0, 5, (b"IDAT", b"")), "damaged|not a picture"),
        (png(4, 6, (b"zTXt", b"a\x00\x00" + zlib.compress(bytes(9 << 20)))), "Decompressed data too large"),
    ],
)
def test_what_is_no_picture_is_named_at_opening(tmp_path, content, message):
    save(tmp_path, GREY)
    (tmp_path / "bad.png").write_bytes(content)
    warnings.simplefilter("ignore")  # what Pillow only warns of is refused all the same
    with pytest.raises(ValueError, match=f"bad\\.png.*({message})") as caught:
        open_source(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [True, False])
def test_a_picture_cut_short_is_named_when_it_is_read(tmp_path, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(images, "KEPT_BYTES", 0)
    path = save(tmp_path, np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)) / "001.png"
    path.write_bytes(path.read_bytes()[:-600])
    source = open_source(tmp_path)
    with pytest.raises(ValueError, match=r"001\.png: it is damaged"):
        rows_of(source)
    with pytest.raises(ValueError, match=r"001\.png: it is damaged"):
        open_source(tmp_path, patch=4, n=100)


def test_a_picture_that_has_changed_its_size_is_named(tmp_path):
    source = open_source(save(tmp_path, GREY))
    Image.fromarray(GREY[0].T).save(tmp_path / "000.png")
    with pytest.raises(ValueError, match=r"000\.png: expected a picture of \(6, 4\), got \(4, 6\)"):
        rows_of(source)


def test_floats_without_a_range_are_refused(tmp_path):
    Image.fromarray(np.zeros((5, 5), np.float32)).save(tmp_path / "0.tif")
    with pytest.raises(ValueError, match=r"0\.tif: its pixels are 32-bit numbers \(mode F\)"):
        open_source(tmp_path)


def test_a_picture_of_the_wrong_ending_is_read_by_its_content(tmp_path):
    save(tmp_path, GREY)
    (tmp_path / "000.png").rename(tmp_path / "000.jpg")
    assert torch.equal(rows_of(open_source(tmp_path))[0], as_row(GREY[0]))


def test_opening_and_reading_leave_the_warnings_of_the_process_alone(tmp_path):
    before = list(warnings.filters)
    rows_of(open_source(save(tmp_path, GREY)))
    assert warnings.filters == before


# ---------------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize("options", [{}, {"grey": True}, {"patch": 4, "n": 60}, {"size": [3, 5]}])
def test_training_on_pictures_gives_the_same_bits_twice(tmp_path, options):
    shape = (40, 30, 3) if "patch" in options else (6, 4, 3)
    folder = save(tmp_path / "p", np.random.default_rng(0).integers(0, 256, (20, *shape), dtype=np.uint8))

    def trainer(out: Path, **config: Any) -> ff.Trainer:
        source = open_source(folder, **options)
        model = ff.Autoencoder(source.row_shape, 16, ff.TopK(k=3), preprocess=source.suggested_preprocess)
        settings = ff.TrainConfig(steps=8, batch_size=5, checkpoint_every=4, validation_fraction=0.2, **config)
        return ff.Trainer(model, source, config=settings, folder=out, progress=False)

    whole = trainer(tmp_path / "whole")
    whole.fit()
    again = trainer(tmp_path / "again")
    again.fit()
    for a, b in zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert ff.evaluate(whole.model, open_source(folder, **options))["n_rows"] == (60 if "patch" in options else 20)


def test_it_is_an_image_source(tmp_path):
    assert isinstance(open_source(save(tmp_path, GREY)), ImageSource)
