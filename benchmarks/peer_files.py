"""Files of SAELens, dictionary_learning and sparsify, both ways: the same latents and reconstructions.

    python benchmarks/peer_files.py --peers PYTHON

``--peers`` is the Python of an environment with all three (benchmarks/peers/dictionaries.py says how to make it). It
makes a model of every architecture, every weight off its first value, and saves it with its library's own code; here
each is loaded and computes 512 rows. Then every architecture of ours, with columns standardized, is written for each of
the libraries that has it; their own loaders open it and compute. The goal is 1e-5: as an absolute difference of
latents, and of reconstructions; "of largest" is the same as a share of the largest value. The last line is the largest.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import itertools
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

import fewfire as ff
from fewfire.formats import PEERS
from measure import print_table, print_title

D, L, K, D_OUT, ROWS = 16, 48, 6, 10, 512
OURS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "topk": {"activation": {"name": "topk", "k": K}},
    "topk, alpha 1.5": {"activation": {"name": "topk", "k": K, "alpha": 1.5}},
    "batchtopk": {"activation": {"name": "batchtopk", "k": K}},
    "jumprelu": {"activation": "jumprelu"},
    "gated": {"activation": "gated"},
    "winner-take-all": {"activation": "wta"},
    "matching_pursuit": {"activation": {"name": "matching_pursuit", "k": K}, "preprocess": None},
    "relu, tied": {"activation": "relu", "network": {"name": "linear", "tied": True}},
    "topk, whitened": {"activation": {"name": "topk", "k": K}, "preprocess": "whiten"},
    "jumprelu, range of each column": {"activation": "jumprelu", "preprocess": "minmax"},
    "relu, transcoder": {"activation": "relu", "d_out": D_OUT, "preprocess_out": "standardize"},
    "jumprelu, transcoder": {"activation": "jumprelu", "d_out": D_OUT, "preprocess_out": "standardize"},
    "batchtopk, transcoder": {"activation": {"name": "batchtopk", "k": K}, "d_out": D_OUT},
    "topk, transcoder": {"activation": {"name": "topk", "k": K}, "d_out": D_OUT},
}

Numbers = npt.NDArray[np.float32]
Case = tuple[str, str, tuple[Numbers, Numbers], tuple[Numbers, Numbers]]
"""library, name, and latents and reconstructions as expected and as found"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peers", type=Path, required=True, help="the Python of an environment with the three")
    python = parser.parse_args().peers
    head = ["", "", "latents", "of largest", "recon", "of largest"]
    read = [compared(*case) for case in theirs_here(python)]
    print_title("Theirs, read here: largest differences")
    print_table(head, [line.cells for line in read])
    written, refused = ours_there(python)
    print_title("Ours, read there: largest differences")
    print_table(head, [line.cells for line in written])
    print_title("Ours, refused")
    print_table(["", "", ""], refused)
    print(f"\nlargest difference: {max(line.apart for line in read + written):.1e}")


class Line(NamedTuple):
    cells: list[str]
    apart: float


def theirs_here(python: Path) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ask(python, "make", folder)
        for case in json.loads((folder / "cases.json").read_text()):
            told = np.load(folder / f"{case['folder']}.npz")
            model = ff.load(folder / case["folder"])
            yield case["library"], case["name"], (told["latents"], told["recon"]), computed(model, told["rows"])


def ours_there(python: Path) -> tuple[list[Line], list[list[str]]]:
    """What was compared, and what was refused."""
    cases: list[dict[str, str]] = []
    refused: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for library, what in itertools.product(PEERS, OURS):
            place = folder / f"{len(cases):02d}"
            model, rows = new_model(**OURS[what])
            try:
                PEERS[library].write(model, place)
            except ValueError as error:
                refused.append([library, what, str(error)[:120]])
                continue
            latents, recon = computed(model, rows)
            np.savez(folder / f"{place.name}.npz", rows=rows, latents=latents, recon=recon)
            cases.append({"library": library, "name": what, "folder": place.name})
        (folder / "cases.json").write_text(json.dumps(cases))
        ask(python, "open", folder)
        lines = []
        for case in cases:
            told = [np.load(folder / f"{case['folder']}{end}.npz") for end in ("", ".theirs")]
            ours, theirs = ((numbers["latents"], numbers["recon"]) for numbers in told)
            lines.append(compared(case["library"], case["name"], ours, theirs))
    return lines, refused


def new_model(**settings: Any) -> tuple[ff.Autoencoder, Numbers]:
    """Every weight off its first value, and rows far enough from 0 that the preprocess matters."""
    generator = torch.Generator().manual_seed(0)
    settings = {"preprocess": "standardize", **settings}
    model = ff.Autoencoder(D, L, **settings)
    rows = torch.randn(ROWS, D, generator=generator) + 3 * torch.randn(D, generator=generator)
    for preprocess, shape in ((model.preprocess, model.input_shape), (model.preprocess_out, model.target_shape)):
        if preprocess is not None:
            preprocess.fit(lambda shape=shape: [1.5 * rows[:, : shape[0]] + 0.5])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if hasattr(model.activation, "threshold"):
            threshold = model.activation.threshold
            threshold.copy_(0.3 + 0.1 * torch.rand(threshold.shape, generator=generator))
        if model.activation.name == "matching_pursuit":  # the one that SAELens can express
            model.encoder.W_enc.div_(model.encoder.W_enc.norm(dim=1, keepdim=True))
            model.encoder.b_enc.copy_(-model.encoder.W_enc @ model.decoder.b_dec)
    return model, rows.numpy()


def computed(model: ff.Autoencoder, rows: Numbers) -> tuple[Numbers, Numbers]:
    return model.encode(rows).numpy(), model.reconstruct(rows).numpy()


def compared(library: str, name: str, expected: tuple[Numbers, Numbers], found: tuple[Numbers, Numbers]) -> Line:
    apart = [float(np.abs(e - f).max()) for e, f in zip(expected, found, strict=True)]
    shares = [a / float(np.abs(e).max()) for a, e in zip(apart, expected, strict=True)]
    numbers = [apart[0], shares[0], apart[1], shares[1]]
    return Line([library, name, *(f"{number:.1e}" for number in numbers)], max(apart))


def ask(python: Path, verb: str, folder: Path) -> None:
    script = Path(__file__).parent / "peers" / "dictionaries.py"
    done = subprocess.run([python, script, verb, folder], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the peers failed:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
