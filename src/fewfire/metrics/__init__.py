"""Pure functions of tensors, and the running sums that let them stream.

Sums are taken in float64, whatever comes in: in float32 the variance of a column with mean 10,000 and spread 1 is 0.
Formulas and meanings: docs/metrics.md.
"""

from __future__ import annotations

from fewfire.metrics.dictionaries import Matches, best_match, match, mcc, mmcs, redundancy, uniqueness
from fewfire.metrics.moments import Moments, unexplained
from fewfire.metrics.pictures import psnr, ssim
from fewfire.metrics.reconstruction import (
    Products,
    cosine,
    explained_variance,
    fvu,
    l2_ratio,
    mse,
    products,
    relative_bias,
)
from fewfire.metrics.sparsity import (
    DENSE,
    Histogram,
    by_latent,
    dead_fraction,
    dense_fraction,
    density,
    density_histogram,
    l0,
    mean_activation,
)
from fewfire.metrics.truth import Detected, Detection, detection, shrinkage

__all__ = [
    "DENSE",
    "Detected",
    "Detection",
    "Histogram",
    "Matches",
    "Moments",
    "Products",
    "best_match",
    "by_latent",
    "cosine",
    "dead_fraction",
    "dense_fraction",
    "density",
    "density_histogram",
    "detection",
    "explained_variance",
    "fvu",
    "l0",
    "l2_ratio",
    "match",
    "mcc",
    "mean_activation",
    "mmcs",
    "mse",
    "products",
    "psnr",
    "redundancy",
    "relative_bias",
    "shrinkage",
    "ssim",
    "unexplained",
    "uniqueness",
]
