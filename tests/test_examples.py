"""The examples: each runs as a reader runs it, says nothing on stderr, and draws something."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("_"))
GALLERY = (ROOT / "docs" / "gallery.md").read_text()
SHOWN = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", GALLERY)

LONGEST = 120  # seconds of a loaded machine
LEAST_COLOURS = 30
MAX_BYTES = 150_000
MAX_LINES = 55


def test_all_run(tmp_path):
    """Two at a time: most of each is the import."""

    def run(script):
        picture = tmp_path / f"{script.stem}.png"
        command = [sys.executable, str(script), "--out", str(picture)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LONGEST, check=False
        )
        return script.name, complaint(done, picture)

    with ThreadPoolExecutor(2) as pool:
        complaints = {name: what for name, what in pool.map(run, EXAMPLES) if what}
    assert not complaints


def complaint(done, picture):
    if done.returncode or done.stderr:
        return f"exit {done.returncode}: {done.stderr[-2000:]}"
    if not picture.is_file():
        return "wrote no picture"
    return flaw(picture)


def flaw(picture):
    """What is wrong with a picture, if anything."""
    with Image.open(picture) as image:
        colours = len(image.convert("RGB").getcolors(image.width * image.height))
    if colours < LEAST_COLOURS:
        return f"{picture.name} is blank: {colours} colours"
    if picture.stat().st_size > MAX_BYTES:
        return f"{picture.name} has {picture.stat().st_size:,} bytes"
    return None


def test_a_blank_picture_is_told(tmp_path):
    Image.new("RGB", (300, 200), "white").save(tmp_path / "blank.png")
    assert "blank" in flaw(tmp_path / "blank.png")


def test_there_are_examples():
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda p: p.stem)
def test_is_short_and_in_the_gallery(script):
    lines = script.read_text().splitlines()
    assert lines[0].startswith('"""')
    assert len(lines) <= MAX_LINES
    assert f"](../examples/{script.name})" in GALLERY, f"docs/gallery.md has no link to {script.name}"
    assert f"pictures/example_{script.stem}.png" in SHOWN


@pytest.mark.parametrize("picture", SHOWN)
def test_every_picture_of_the_gallery_is_there(picture):
    assert flaw(ROOT / "docs" / picture) is None


def test_every_example_picture_is_in_the_gallery():
    there = {f"pictures/{path.name}" for path in (ROOT / "docs" / "pictures").glob("example_*.png")}
    assert there == set(SHOWN)
