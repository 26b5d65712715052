"""Anomaly detection on ADBench's tables: fewfire's AnomalyDetector beside PyOD's detectors and nearest neighbours.

Two protocols (ADBench, Han et al. 2022, section 3; without its copies of the rows of small tables, which put the
same row into training and test):

contaminated
    of at most 10,000 rows 70 % are trained on, anomalies among them, and the rest is scored
one-class
    trained on a random half of the normal rows, at most 10,000; the other half and all anomalies are scored, at most
    20,000

All get the same rows: nearest neighbours scaled as the protocol has them (contaminated: range of the training rows to
[0, 1]; one-class: mean 0 and deviation 1), the others as they come, each with its own defaults. Prints AUROC and
average precision, means over seeds, and CPU seconds of fitting and scoring on one thread.

    python benchmarks/anomaly_tables.py --data FOLDER        FOLDER holds ADBench's *.npz with X and y

Needs pyod (benchmarks/speed/requirements-peers.txt).
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import MinMaxScaler, StandardScaler

import fewfire as ff
from fewfire.anomaly import Detector, Ensemble, Part, Prototypes
from measure import print_table, print_title

Split = tuple[np.ndarray, np.ndarray, np.ndarray]
Scores = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""(training rows, test rows, seed) -> scores of the test rows, larger for anomalies"""

PROTOCOLS = ("contaminated", "one-class")


def split(x: np.ndarray, y: np.ndarray, protocol: str, seed: int) -> Split:
    """Training rows, test rows, which of these are anomalies."""
    rng = np.random.default_rng(seed)
    if protocol == "contaminated":
        if len(x) > 10_000:
            few = rng.choice(len(x), 10_000, replace=False)
            x, y = x[few], y[few]
        train, test, _, answer = train_test_split(x, y, test_size=0.3, stratify=y, random_state=seed)
        return train, test, answer
    normal = rng.permutation(np.flatnonzero(y == 0))
    half = len(normal) // 2
    test = np.concatenate([normal[half:], np.flatnonzero(y == 1)])
    if len(test) > 20_000:
        test, _ = train_test_split(test, train_size=20_000, stratify=y[test], random_state=seed)
    return x[normal[:half][:10_000]], x[test], y[test]


# ---------------------------------------------------------------------------------------------- contestants


def fewfire(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    return -ff.AnomalyDetector(random_state=seed).fit(train).score_samples(test)


def of_parts(make: Callable[[], list[Part]]) -> Scores:
    """The same detector of other parts."""

    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        detector = Detector(make(), seed=seed).fit(torch.from_numpy(train))
        return detector(torch.from_numpy(test)).score.numpy()

    return score


def neighbours(k: int | None, protocol: str) -> Scores:
    """Distance to the k-th nearest training row; None: a tenth of them."""
    scaler = MinMaxScaler if protocol == "contaminated" else StandardScaler

    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        scale = scaler().fit(train)
        count = k or max(1, len(train) // 10)
        near = NearestNeighbors(n_neighbors=min(count, len(train))).fit(scale.transform(train))
        return near.kneighbors(scale.transform(test))[0][:, -1]

    return score


def pyod(make: Callable[[int], Any]) -> Scores:
    def score(train: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        return make(seed).fit(train).decision_function(test)

    return score


def contestants(protocol: str, slow: bool) -> dict[str, Scores]:
    from pyod.models.auto_encoder import AutoEncoder
    from pyod.models.ecod import ECOD
    from pyod.models.iforest import IForest
    from pyod.models.vae import VAE

    found: dict[str, Scores] = {
        "fewfire": fewfire,
        "fewfire, no learned part": of_parts(lambda: [Prototypes(view=("range", "asinh")), Prototypes()]),
        "fewfire, learned part alone": of_parts(lambda: [Ensemble()]),
        "isolation forest": pyod(lambda seed: IForest(random_state=seed)),
        "ECOD": pyod(lambda seed: ECOD()),
        "neighbours, k=1": neighbours(1, protocol),
        "neighbours, k=5": neighbours(5, protocol),
        "neighbours, k=10 %": neighbours(None, protocol),
        "PyOD AutoEncoder": pyod(lambda seed: AutoEncoder(random_state=seed, verbose=0)),
    }
    if slow:
        found["PyOD VAE"] = pyod(lambda seed: VAE(random_state=seed, verbose=0))
    return found


# ---------------------------------------------------------------------------------------------- measuring


def measured(args: argparse.Namespace, protocol: str) -> Iterator[tuple[str, str, int, np.ndarray, np.ndarray, float]]:
    """Contestant, table, seed, scores, answers, CPU seconds."""
    for path in sorted(args.data.glob("*.npz")):
        if args.only and path.stem not in args.only:
            continue
        with np.load(path, allow_pickle=False) as file:
            x, y = file["X"].astype(np.float64), file["y"].astype(np.int64)
        for seed in args.seeds:
            train, test, answer = split(x, y, protocol, seed)
            for name, score in contestants(protocol, not args.no_vae).items():
                if args.who and name not in args.who:
                    continue
                start = time.process_time()
                scores = np.asarray(score(train, test, seed), dtype=np.float64)
                yield name, path.stem, seed, scores, answer, time.process_time() - start
            print(".", end="", flush=True)


def run(args: argparse.Namespace, protocol: str) -> None:
    auroc: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    precision: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = defaultdict(float)
    ranks: dict[tuple[str, int], dict[str, np.ndarray]] = defaultdict(dict)
    answers: dict[tuple[str, int], np.ndarray] = {}
    broken: dict[str, int] = defaultdict(int)

    def note(name: str, table: str, scores: np.ndarray, answer: np.ndarray) -> None:
        auroc[name][table].append(100 * roc_auc_score(answer, scores))
        precision[name][table].append(100 * average_precision_score(answer, scores))

    for name, table, seed, scores, answer, took in measured(args, protocol):
        broken[name] += not np.isfinite(scores).all()
        scores = np.nan_to_num(scores)
        note(name, table, scores, answer)
        seconds[name] += took
        ranks[table, seed][name], answers[table, seed] = scores.argsort().argsort(), answer
    print()
    peers = [name for name in auroc if not name.startswith("fewfire")]
    best = sorted(peers, key=lambda name: -np.mean([np.mean(v) for v in auroc[name].values()]))[:2]
    if len(best) == 2:
        together = f"ranks of {best[0]} + {best[1]}"
        for (table, seed), given in ranks.items():
            note(together, table, given[best[0]] + given[best[1]], answers[table, seed])
    tables = list(next(iter(auroc.values())))
    rows = [
        [
            name,
            f"{np.mean([np.mean(v) for v in auroc[name].values()]):.1f}",
            f"{np.mean([np.mean(v) for v in precision[name].values()]):.1f}",
            f"{seconds[name]:.0f}" if name in seconds else "",
            *(f"{np.mean(auroc[name][table]):.0f}" for table in tables),
        ]
        for name in auroc
    ]
    print_title(f"{protocol}: AUROC x 100, average precision x 100, CPU s of all fits and scores; AUROC per table")
    print_table(["", "AUROC", "AP", "CPU s", *(t.split("_", 1)[-1][:9] for t in tables)], rows)
    for name, count in broken.items():
        if count:
            print(f"{name}: scores that are not finite in {count} runs, taken as 0")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz files with X and y")
    parser.add_argument("--only", nargs="*", help="names of tables, such as 6_cardio")
    parser.add_argument("--seeds", type=int, nargs="*", default=[1, 2, 3])
    parser.add_argument("--protocols", nargs="*", default=PROTOCOLS, choices=PROTOCOLS)
    parser.add_argument("--who", nargs="*", help="contestants by name; None: all")
    parser.add_argument("--no-vae", action="store_true", help="leave out PyOD's VAE, which takes longest")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for one in arguments.protocols:
        run(arguments, one)
