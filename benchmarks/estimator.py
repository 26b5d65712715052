"""What SparseAutoencoder gives without turning a knob, on five tables; and beside dictionary learning.

    python benchmarks/estimator.py [--only digits] [--seed 0]

**Defaults.** Every setting names nothing but what it is about. Explained variance and that of an average column, L0,
the share of latents that never fire (of logistic units: never exceed one half), their mean activation, CPU seconds of
``fit``. The tables: scikit-learn's digits, breast cancer and iris; 10,000 rows of 20 clusters in 50 columns; and 800
rows of four hidden causes in 20 columns whose scales run from 1e-6 to 1e9, none of them centred. Rows are those that
were fitted.

**Beside dictionary learning.** The digits, standardised, half of them held out: scikit-learn's
MiniBatchDictionaryLearning with as many components and as many non-zero codes a row, which solves a problem for every
row where an encoder multiplies once; and PCA with as many components as codes are not zero.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import sklearn.datasets
from sklearn.decomposition import PCA, MiniBatchDictionaryLearning
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

import fewfire as ff
from measure import CpuSeconds, print_table, print_title

Rows = npt.NDArray[np.floating[Any]]

SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "sigmoid": {"activation": "sigmoid"},
    "relu": {"activation": "relu"},
    "hidden=(128,)": {"hidden": (128,)},
    "hidden, sigmoid": {"hidden": (128,), "activation": "sigmoid"},
    "loss='bce'": {"loss": "bce"},
    "tied": {"tied": True},
    "preprocess='whiten'": {"preprocess": "whiten"},
}
COMPONENTS, K = 128, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=sorted(tables()), help="one of the tables")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = [
        line(name, x, setting, options.seed)
        for name, x in tables().items()
        if options.only in (None, name)
        for setting in SETTINGS
    ]
    print_title(f"SparseAutoencoder as it comes, seed {options.seed}")
    print_table(["", "variance", "of a column", "L0", "dead", "mean", "warns", "CPU s"], lines)
    print_title(f"Held-out digits, {COMPONENTS} components, {K} codes a row")
    print_table(["", "variance", "fit, CPU s", "transform, CPU s"], beside(options.seed))


def tables() -> dict[str, Rows]:
    generator = np.random.default_rng(0)
    causes = generator.normal(size=(800, 4)) @ generator.normal(size=(4, 20)) + 0.3 * generator.normal(size=(800, 20))
    return {
        "digits": sklearn.datasets.load_digits().data,
        "cancer": sklearn.datasets.load_breast_cancer().data,
        "iris": sklearn.datasets.load_iris().data,
        "clusters": sklearn.datasets.make_blobs(10_000, 50, centers=20, random_state=0)[0],
        "scales": (causes + 5) * np.logspace(-6, 9, 20),
    }


def line(name: str, x: Rows, setting: str, seed: int) -> list[str]:
    model = ff.SparseAutoencoder(random_state=seed, **SETTINGS[setting])
    with warnings.catch_warnings(record=True) as caught, CpuSeconds() as cpu:
        warnings.simplefilter("always")
        model.fit(x)
    s = ff.evaluate(model.module_, x)
    return [
        f"{name}, {setting}",
        f"{s['explained_variance']:.3f}",
        f"{1 - s['fvu_columns']:.3f}",
        f"{s['l0']:.1f} of {s['n_latents']}",
        f"{s['dead_fraction']:.0%}",
        f"{s['mean_activation']:.3f}",
        "yes" if caught else "",
        f"{cpu.used:.1f}",
    ]


def beside(seed: int) -> list[list[str]]:
    x = StandardScaler().fit_transform(sklearn.datasets.load_digits().data)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    learners: dict[str, Any] = {
        "SparseAutoencoder": ff.SparseAutoencoder(COMPONENTS, k=K, random_state=seed),
        "the same, hidden=(128,)": ff.SparseAutoencoder(COMPONENTS, k=K, hidden=(128,), random_state=seed),
        "MiniBatchDictionaryLearning, omp": MiniBatchDictionaryLearning(
            COMPONENTS, transform_algorithm="omp", transform_n_nonzero_coefs=K, random_state=seed
        ),
        f"PCA({K})": PCA(K, random_state=seed),
    }
    lines = []
    for name, learner in learners.items():
        with CpuSeconds() as fit:
            learner.fit(train)
        with CpuSeconds() as transform:
            codes = learner.transform(test)
        recon = learner.inverse_transform(codes)
        score = r2_score(test, recon, multioutput="variance_weighted")
        lines.append([name, f"{score:.3f}", f"{fit.used:.2f}", f"{transform.used:.2f}"])
    return lines


if __name__ == "__main__":
    main()
