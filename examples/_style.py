"""What the pictures here share: where they are written, their colours, and grids of small pictures."""

import argparse
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import fewfire as ff

BLUE, ORANGE, GREEN, PINK, SKY, AMBER = ff.plot.STYLE["cycle"]  # Okabe & Ito: told apart with any colour vision
COLOURS = ff.plot.STYLE["classes"]  # the same, and more
INK, MUTED, FAINT = (ff.plot.STYLE[name] for name in ("ink", "muted", "faint"))
PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"

matplotlib.use("Agg")
plt.rcParams.update(
    {
        "font.size": 13, "axes.titlesize": 14, "axes.titlelocation": "left", "axes.titlepad": 10,
        "text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
        "axes.grid": True, "axes.grid.axis": "y", "grid.color": FAINT, "lines.linewidth": 2.2,
        "legend.frameon": False, "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.09, "figure.constrained_layout.w_pad": 0.09, "figure.dpi": 120,
    }
)  # fmt: skip


def picture_path(doc: str, script: str) -> Path:
    """Where to write: ``--out``, or docs/pictures/example_NAME.png."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURES / f"example_{Path(script).stem}.png", metavar="PICTURE")
    return parser.parse_args().out


def grid(ax, pictures, columns: int, names=(), **limits) -> None:
    """(n, h, w) pictures in reading order, a name beside each line; on one grey scale where ``vmin``, ``vmax`` say."""
    pictures = np.asarray(pictures, dtype=float)
    n, h, w = pictures.shape
    zoom = max(1, round(24 / h))  # small pictures are enlarged, so that gaps are thin
    gap = max(2, round(0.12 * h * zoom))
    lines = -(-n // columns)
    h, w = h * zoom, w * zoom
    sheet = np.full((lines * (h + gap) - gap, columns * (w + gap) - gap), np.nan)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        sheet[top : top + h, left : left + w] = np.kron(picture, np.ones((zoom, zoom)))
    ax.imshow(sheet, interpolation="nearest", **{"cmap": "gray", **limits})
    ax.set_axis_off()
    for i, name in enumerate(names):
        ax.text(-0.4 * gap - 4, i * (h + gap) + h / 2, name, ha="right", va="center")


def save(figure, path: Path) -> None:
    """Write the picture with a palette of its own, which makes a small file, and say where."""
    canvas = figure.canvas
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    plt.close(figure)
    print(f"wrote {path}")
