"""Every bad input at every entry point: the right answer or one clear line, and nothing changed. See bad_inputs.py."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch

import bad_inputs
from bad_inputs import CASES, ENTRIES, applies, expected, outcome

CELLS = [
    pytest.param(case, entry, id=f"{case.name}-{entry}") for case in CASES for entry in ENTRIES if applies(case, entry)
]


def same(before, after):
    """Whether an input is what it was."""
    if isinstance(before, torch.Tensor):
        return torch.equal(before.to_dense(), after.to_dense())
    if isinstance(before, pd.DataFrame | pl.DataFrame):
        return before.equals(after)
    if sp.issparse(before):
        return (before != after).nnz == 0
    if isinstance(before, np.ma.MaskedArray):
        return (before.mask == after.mask).all() and (before.data == after.data).all()
    return str(before) == str(after)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize(("case", "entry"), CELLS)
def test_the_right_answer_or_a_clear_line(case, entry):
    data = case.make()
    before = data if isinstance(data, np.memmap) else copy.deepcopy(data)
    found = outcome(case, entry, data)
    assert same(before, data), "the input was changed"
    if found.error is not None:
        assert isinstance(found.error, ValueError | TypeError | FileNotFoundError), found.error
        assert len(found.message) < 400
        assert any(word in found.message for word in case.says), found.message
    elif entry in case.also_taken_by:
        assert np.isfinite(found.value).all()
    else:
        assert case.means is not None, "taken in silence"
        right = expected(case, entry)
        assert np.isfinite(found.value).all()
        np.testing.assert_allclose(found.value, right, rtol=1e-3, atol=1e-4 * max(1, np.abs(right).max(initial=0)))


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_the_page_says_what_happens():
    """Which are taken and which refused, to the letter; the sentences are checked above."""
    page = (Path(__file__).parent.parent / "docs" / "bad-input.md").read_text()
    now = bad_inputs.table()

    def verdicts(text):
        return [line.split(" | ")[:3] for line in text.splitlines() if line.startswith("| ")]

    assert verdicts(page) == verdicts(now), "python tests/bad_inputs.py > docs/bad-input.md"
