"""What fewfire adds to ``import torch``, whether ``fewfire --help`` needs torch, and whether anything needs a network.

    python benchmarks/import_time.py [--rounds 5]

**Import.** Wall seconds in fresh interpreters: ``import torch``; ``import torch``, then ``import fewfire`` and
touching every public name, which loads every public module; the estimators last and on their own, because they load
scikit-learn, which only their users need. The two take turns, so that a busy spell falls on
both; one unmeasured round warms the disk cache. The number that counts is the median of what comes after torch
inside one process: torch's own scatter of several tenths of a second stays out of it.

**Help.** ``fewfire --help`` as a user calls it, and the modules it loaded.

**Network.** import, fit and encode in a new network namespace without any interface (``unshare -rn``), where a machine
allows that.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import print_table, print_title

TORCH = "import time; a = time.perf_counter(); import torch; print(time.perf_counter() - a)"
FEWFIRE = """
import time, warnings
import torch
a = time.perf_counter()
import fewfire
b = time.perf_counter()
missing = []
estimators = set(fewfire._HOME["fewfire.estimators"])

def touch(names):
    for name in sorted(names):
        try:
            getattr(fewfire, name)
        except ImportError as error:
            missing.append(name)

touch({*fewfire._WHERE, *fewfire._MODULES} - estimators)
c = time.perf_counter()
touch(estimators)
print(b - a, c - b, time.perf_counter() - c, *missing)
"""
HELP = """
import sys
sys.argv = ["fewfire", "--help"]
from fewfire.cli import main
try:
    main()
except SystemExit:
    pass
heavy = [m for m in ("torch", "numpy", "scipy", "sklearn", "matplotlib", "pyarrow") if m in sys.modules]
print(*heavy, file=sys.stderr)
"""
OFFLINE = """
import socket, torch, fewfire
try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
    raise SystemExit("there is a network")
except OSError:
    pass
source = fewfire.digits()
model = fewfire.Autoencoder(64, 32, fewfire.TopK(4), preprocess="center")
fewfire.Trainer(model, source, config=fewfire.TrainConfig(steps=20), progress=False).fit()
x = next(source.batches(8)).x
print(tuple(model.encode(x).shape), tuple(model.reconstruct(x).shape))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch_alone, imported, touched, estimators, missing = import_seconds(rounds)
    help_seconds, heavy = help_call(rounds)
    added = [i + t for i, t in zip(imported, touched, strict=True)]
    rows = [
        ["import torch", seconds(torch_alone), "", ""],
        ["then import fewfire", seconds(imported), "", ""],
        ["then every public name", seconds(touched), "", ""],
        ["then the estimators", seconds(estimators), "", ""],
        ["fewfire beyond torch", seconds(added), "< 0.300 s", verdict(statistics.median(added) < 0.3)],
        ["fewfire --help, wall", seconds(help_seconds), "", ""],
        ["  of it imports torch", "yes" if "torch" in heavy else "no", "no", verdict("torch" not in heavy)],
        ["  heavy modules it loads", " ".join(heavy) or "none", "", ""],
        ["import, fit, encode without a network", *offline()],
    ]
    if missing:
        rows.append(["public names that do not load", " ".join(missing), "none", "MISSED"])
    print_title(f"Import time: median of {rounds} fresh interpreters [least to most]")
    print_table(["what", "result", "goal", ""], rows)


def import_seconds(rounds: int) -> tuple[list[float], list[float], list[float], list[float], list[str]]:
    """Seconds of torch alone; of ``import fewfire`` after torch; of its public names; of estimators; what fails."""
    torch_alone, imported, touched, estimators = [], [], [], []
    missing: list[str] = []
    for turn in range(rounds + 1):
        alone = float(python(TORCH).stdout)
        first, rest, last, *missing = python(FEWFIRE).stdout.split()
        if turn > 0:
            torch_alone.append(alone)
            imported.append(float(first))
            touched.append(float(rest))
            estimators.append(float(last))
    return torch_alone, imported, touched, estimators, missing


def help_call(rounds: int) -> tuple[list[float], list[str]]:
    """Wall seconds of whole calls of ``fewfire --help``, and the heavy modules that it loads."""
    script = shutil.which("fewfire", path=Path(sys.executable).parent)
    command = [script, "--help"] if script else [sys.executable, "-c", "from fewfire.cli import main; main()", "--help"]
    spent = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        spent.append(time.perf_counter() - start)
    return spent[1:], python(HELP).stderr.split()


def offline() -> list[str]:
    """Result, goal and verdict of a fit where there is no network."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rn", "true"], capture_output=True).returncode != 0:
        return ["skipped: this machine has no unshare -rn", "works", ""]
    run = subprocess.run([unshare, "-rn", sys.executable, "-c", OFFLINE], capture_output=True, text=True)
    if run.returncode != 0:
        return [run.stderr.strip().split("\n")[-1], "works", "MISSED"]
    return ["works", "works", "ok"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(run.stderr)
    return run


def seconds(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} s [{min(values):.3f} to {max(values):.3f}]"


def verdict(met: bool) -> str:
    return "ok" if met else "MISSED"


if __name__ == "__main__":
    main()
