"""One thread, set before torch is imported: the tests run side by side, and bits do not depend on the machine."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")

import numpy as np
import pytest
import torch

import fewfire as ff


@pytest.fixture
def rows() -> np.ndarray:
    """(200, 12) float32: a few directions, sparsely mixed, with noise and an offset."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(20, 12))
    weights = generator.exponential(size=(200, 20)) * (generator.random((200, 20)) < 0.15)
    noise = 0.05 * generator.normal(size=(200, 12))
    return (weights @ directions + noise + 1.0).astype(np.float32)


@pytest.fixture
def source(rows):
    return ff.ArraySource(rows)


@pytest.fixture(autouse=True)
def global_generators_untouched():
    """Nothing in fewfire may draw from, or seed, the generators that belong to the caller."""
    before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    yield
    assert torch.equal(torch.get_rng_state(), before_torch), "torch's global generator was used"
    assert (np.random.get_state()[1] == before_numpy).all(), "numpy's global generator was used"  # noqa: NPY002
