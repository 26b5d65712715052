"""Columns of text as numbers: pandas, polars and pyarrow alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from fewfire.rows import Categories
from fewfire.rows.categories import MAX_CATEGORIES


def table() -> pd.DataFrame:
    return pd.DataFrame({"x": [1.5, 2.5, 3.5], "kind": ["b", "a", "b"], "n": [1, 2, 3]})


ENCODED = np.array([[1.5, 0, 1, 0, 1], [2.5, 1, 0, 0, 2], [3.5, 0, 1, 0, 3]])


def polars(frame: pd.DataFrame) -> Any:
    return pytest.importorskip("polars").from_pandas(frame)


MAKERS = {
    "pandas": lambda frame: frame,
    "pandas categories": lambda frame: frame.astype({"kind": "category"}),
    "pandas strings": lambda frame: frame.astype({"kind": "string"}),
    "polars": polars,
    "pyarrow": lambda frame: pa.Table.from_pandas(frame, preserve_index=False),
    "pyarrow dictionaries": lambda frame: pa.Table.from_pandas(
        frame.astype({"kind": "category"}), preserve_index=False
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_text_becomes_a_column_for_each_category(maker: str) -> None:
    categories = Categories.fit(MAKERS[maker](table()))
    assert categories.found == [None, ("a", "b"), None]
    assert categories.column_of.tolist() == [0, 1, 1, 1, 2]
    assert not categories.is_plain
    assert np.array_equal(categories(MAKERS[maker](table())), ENCODED)


@pytest.mark.parametrize("maker", MAKERS)
def test_unseen_and_missing_texts_are_the_last_column(maker: str) -> None:
    new = table().assign(kind=["c", None, "a"])
    encoded = Categories.fit(table())(MAKERS[maker](new))
    assert encoded[:, 1:4].tolist() == [[0, 0, 1], [0, 0, 1], [1, 0, 0]]
    encoded = Categories.fit(table())(MAKERS[maker](new[1:]))
    assert encoded[:, 1:4].tolist() == [[0, 0, 1], [1, 0, 0]]


@pytest.mark.parametrize("maker", MAKERS)
def test_a_missing_text_that_fit_saw_is_a_category(maker: str) -> None:
    frame = table().assign(kind=["a", None, "a"])
    categories = Categories.fit(MAKERS[maker](frame))
    assert categories.found[1] == ("", "a")
    assert categories(MAKERS[maker](frame))[:, 1:4].tolist() == [[0, 1, 0], [1, 0, 0], [0, 1, 0]]


def test_whole_numbers_as_categories_are_the_same_beside_an_empty_cell() -> None:
    """pandas hands them over as 1.0, 2.0 and NaN."""
    categories = Categories.fit(pd.DataFrame({"k": pd.Categorical([1, 2])}))
    assert categories.found == [("1", "2")]
    encoded = categories(pd.DataFrame({"k": pd.Categorical([1, None, 2], categories=[1, 2])}))
    assert encoded.tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


def test_numbers_and_booleans_are_no_text() -> None:
    frame = pd.DataFrame({"b": [True, False], "i": pd.array([1, None], dtype="Int64"), "o": np.array([1, 2], object)})
    categories = Categories.fit(frame)
    assert categories.is_plain
    assert np.array_equal(categories(frame), [[1, 1, 1], [0, np.nan, 2]], equal_nan=True)


def test_what_cannot_be_categories_is_refused() -> None:
    ids = pd.DataFrame({"id": [f"row {i}" for i in range(MAX_CATEGORIES + 1)]})
    with pytest.raises(ValueError, match=r"column 'id': 257 different texts, expected at most 256"):
        Categories.fit(ids)
    Categories.fit(ids[1:])
    with pytest.raises(TypeError, match="column\\(s\\) 'when' are datetime64"):
        Categories.fit(pd.DataFrame({"when": pd.to_datetime(["2026-01-01"]), "kind": ["a"]}))
    with pytest.raises(TypeError, match="column 'x', must hold real numbers; row 1 holds 'far'"):
        Categories.fit(table())(table().astype({"x": object}).assign(x=[1.0, "far", 2.0]))
