"""What people hand over: the same numbers give the same rows whatever holds them, and the rest is refused by place."""

from __future__ import annotations

import datetime
import warnings
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from fewfire.rows import aligned, as_rows, as_storage, check_finite, column_names, compute_dtype, take
from fewfire.sources import ArraySource, open_source

N, D = 7, 3
X = np.random.default_rng(0).integers(0, 99, size=(N, D)).astype(np.float64)
NAMES = ["width", "height", "weight"]

EXACT = ["bool", "int8", "uint8", "int16", "uint16", "float16", "float32"]
WIDE = ["int32", "uint32", "int64", "uint64", "float64", "longdouble"]


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


def all_of(source: ArraySource, shuffle: bool) -> torch.Tensor:
    batches = list(source.batches(3, shuffle=shuffle))
    rows = torch.cat([batch.rows for batch in batches])
    return torch.cat([batch.x for batch in batches])[rows.argsort()]


# ------------------------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", EXACT + WIDE)
def test_rows_are_float32_where_that_is_exact_and_float64_elsewhere(dtype, order):
    expected = torch.float32 if dtype in EXACT else torch.float64
    x = X.astype(np.dtype(dtype).newbyteorder(order))
    as_numbers = torch.from_numpy(x.astype(np.float64))
    assert as_rows(x).dtype == expected
    assert torch.equal(as_rows(x).double(), as_numbers)
    for shuffle in (True, False):
        rows = all_of(ArraySource(x), shuffle)
        assert rows.dtype == expected
        assert torch.equal(rows.double(), as_numbers)


@pytest.mark.parametrize("dtype", [d for d in EXACT + WIDE if d != "longdouble"])
def test_a_tensor_gives_what_the_array_gives(dtype):
    x = X.astype(dtype)
    tensor = torch.from_numpy(x)
    assert compute_dtype(tensor) == compute_dtype(x)
    assert torch.equal(as_rows(tensor), as_rows(x))
    for shuffle in (True, False):
        assert torch.equal(all_of(ArraySource(tensor), shuffle), as_rows(x))


def test_no_second_is_lost_of_a_time_stamp():
    stamps = np.array([[1_700_000_001], [1_700_000_002]])
    assert as_rows(stamps).tolist() == stamps.tolist()
    assert as_rows(torch.from_numpy(stamps)).tolist() == stamps.tolist()
    assert as_rows(pd.DataFrame(stamps)).tolist() == stamps.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrow_floats_of_torch_come_as_float32(dtype):
    x = torch.tensor([[1.0, -0.5], [2.0, 0.0]], dtype=dtype)
    assert torch.equal(as_rows(x), x.float())
    assert torch.equal(all_of(ArraySource(x), True), x.float())


def test_values_beyond_float32_stay_what_they_are():
    for x in ([[1e200, 1]], np.array([[1e200, 1]], dtype=object), pd.DataFrame([[1e200, 1]])):
        assert as_rows(x).tolist() == [[1e200, 1.0]]


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    "given",
    [
        np.asfortranarray(X),
        np.repeat(X, 2, axis=1)[:, ::2],
        X[::-1, ::-1].copy()[::-1, ::-1],
        read_only(X),
        X.view(np.matrix),
        X.tolist(),
        tuple(map(tuple, X)),
        [torch.tensor(row, requires_grad=True) for row in X],
        torch.tensor(X, requires_grad=True),
        torch.tensor(X).t().contiguous().t(),
        np.ma.MaskedArray(X, np.zeros(X.shape, bool)),
        X.astype(object),
        np.vectorize(Decimal, otypes=[object])(X),
        np.vectorize(Fraction, otypes=[object])(X.astype(int)),
        pd.DataFrame(X),
        pl.DataFrame(X),
        pa.table(dict(zip("abc", X.T, strict=True))),
        pa.record_batch(dict(zip("abc", X.T, strict=True))),
    ],
    ids=lambda given: type(given).__name__,
)
def test_the_same_numbers_are_the_same_rows_whatever_holds_them(given):
    assert torch.equal(as_rows(given), torch.from_numpy(X))
    for shuffle in (True, False):
        assert torch.equal(all_of(open_source(given), shuffle), torch.from_numpy(X))


def test_what_is_given_is_never_written_to():
    given = [X.copy(), torch.tensor(X), pd.DataFrame(X.copy()), X.astype(object), np.ma.MaskedArray(X.copy())]
    for data in given:
        before = as_rows(data).clone().numpy()
        for batch in ArraySource(data).batches(3):
            batch.x.zero_()
        as_rows(data)
        assert np.array_equal(np.asarray(data.tolist() if hasattr(data, "tolist") else data, dtype=float), before)


@pytest.mark.parametrize("make", [np.array, torch.tensor, pd.DataFrame], ids=["numpy", "torch", "pandas"])
def test_floats_are_borrowed_not_copied(make):
    data = make(X.copy())
    address = data.data_ptr() if isinstance(data, torch.Tensor) else np.asarray(data).ctypes.data
    storage = as_storage(data, "x")
    assert (storage.data_ptr() if isinstance(storage, torch.Tensor) else storage.ctypes.data) == address


def test_a_file_of_2_to_the_31_rows_is_read_at_its_end(tmp_path):
    n = 2**31 + 5
    path = tmp_path / "long.npy"
    header = {"descr": "|u1", "fortran_order": False, "shape": (n, 1)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + n)  # a hole: it takes no space
        file.seek(-1, 2)
        file.write(b"\x07")
    source = open_source(path)
    assert source.n_rows == n
    *_, last = source.batches(4096, shuffle=False, start=n // 4096)
    assert last.rows[-1] == n - 1
    assert last.x[-1].item() == 7


# ---------------------------------------------------------------------------------------------------------- tables


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame(columns)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (frame(a=[1.5, 2], b=[True, False]), [[1.5, 1], [2, 0]]),
        (frame(a=np.int8([1, 2]), b=[True, False]), [[1, 1], [2, 0]]),
        (frame(a=pd.array([1, None], "Int64"), b=[3, 4]), [[1, 3], [np.nan, 4]]),
        (frame(a=pd.array([1.5, None], "Float32")), [[1.5], [np.nan]]),
        (frame(a=pd.array([True, None], "boolean")), [[1], [np.nan]]),
        (frame(a=pd.array([1, None], "int64[pyarrow]")), [[1], [np.nan]]),
        (frame(a=pd.arrays.SparseArray([0.0, 2.5])), [[0], [2.5]]),
        (frame(a=pd.Categorical([5, 7])), [[5], [7]]),
        (frame(a=np.array([1, Decimal("2.5")], dtype=object)), [[1], [2.5]]),
        (pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]), [[1, 2], [3, 4]]),
        (pl.DataFrame({"a": [1, 2], "b": [1.5, None]}), [[1, 1.5], [2, np.nan]]),
        (pl.DataFrame({"a": [True, None]}), [[1], [np.nan]]),
        (pl.DataFrame({"a": [Decimal("1.25"), None]}), [[1.25], [np.nan]]),
        (pl.DataFrame({"a": [None, None]}), [[np.nan], [np.nan]]),
        (pa.table({"a": [1, None], "b": [True, None]}), [[1, 1], [np.nan, np.nan]]),
        (pa.table({"a": pa.array([Decimal("1.5")])}), [[1.5]]),
        (pa.table({"a": pa.array([3.0, 4.0]).dictionary_encode()}), [[3], [4]]),
        (pa.table({"a": pa.nulls(1)}), [[np.nan]]),
    ],
)
def test_columns_of_every_numeric_type_are_read(table, expected):
    assert np.array_equal(as_rows(table).numpy(), np.array(expected, dtype=np.float64), equal_nan=True)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (frame(a=np.float32([1]), b=np.int16([2])), torch.float32),
        (frame(a=np.float32([1]), b=np.int32([2])), torch.float64),
        (frame(a=pd.array([1], "Int8"), b=pd.array([1.0], "Float32")), torch.float32),
        (pl.DataFrame({"a": [1.0]}, schema={"a": pl.Float32}), torch.float32),
        (pl.DataFrame({"a": [1]}), torch.float64),
        (pa.table({"a": pa.array(np.float16([1]))}), torch.float32),
    ],
)
def test_a_table_takes_float32_when_every_column_fits(table, expected):
    assert as_rows(table).dtype == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (frame(a=[1, 2], b=["few", "many"]), "column 'b'.* row 0 holds 'few' \\(str\\)"),
        (frame(b=pd.Categorical(["few", "many"])), "column 'b'.* holds 'few'"),
        (frame(b=pd.Series([1.0, "many"], dtype=object)), "column 'b'.* row 1 holds 'many'"),
        (frame(b=pd.Series([1.0, b"7"], dtype=object)), "column 'b'.* row 1 holds b'7' \\(bytes\\)"),
        (frame(b=[datetime.date(2020, 1, 1)]), "column 'b'.* datetime.date"),
        (frame(b=pd.period_range("2020", periods=1, freq="D")), "column 'b'.* Period"),
        (frame(b=[[1, 2], [3, 4]]), "column 'b'.* holds \\[1, 2\\] \\(list\\)"),
        (frame(b=[1j]), "column 'b'.* complex"),
        (pl.DataFrame({"b": ["few"]}), "column 'b'.* 'few'"),
        (pl.DataFrame({"b": pl.Series(["few"], dtype=pl.Categorical)}), "column 'b'.* 'few'"),
        (pl.DataFrame({"b": [1]}).lazy(), r"LazyFrame; call its collect\(\)"),
        (pa.table({"b": ["few"]}), "column 'b'.* 'few'"),
    ],
)
def test_a_column_that_holds_no_numbers_is_named(table, message):
    with pytest.raises(TypeError, match=message) as caught:
        as_rows(table)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (
            frame(a=[1, 2], b=pd.date_range("2020", periods=2), c=pd.date_range("2020", periods=2, tz="UTC")),
            "column(s) 'b', 'c' are datetime64",
        ),
        (frame(a=pd.to_timedelta([1])), "column(s) 'a' are timedelta64"),
        (frame(a=pd.array([datetime.date(2020, 1, 1)], "date32[pyarrow]")), "column(s) 'a' are datetime64"),
        (
            pl.DataFrame({"a": [datetime.date(2020, 1, 1)], "b": [datetime.timedelta(1)], "c": [1]}),
            "column(s) 'a', 'b' are datetime64 and timedelta64",
        ),
        (pa.table({"a": [datetime.datetime(2020, 1, 1)], "b": [1]}), "column(s) 'a' are datetime64"),
        (frame(**{f"d{i}": pd.date_range("2020", periods=1) for i in range(9)}), "'d3', 'd4', ... are datetime64"),
    ],
)
def test_all_columns_of_dates_are_named_together(table, named):
    with pytest.raises(TypeError) as caught:
        as_rows(table)
    assert str(caught.value) == f"x: {named}; convert to numbers first" or named in str(caught.value)
    assert "convert to numbers first" in str(caught.value)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (pd.DataFrame(X, columns=NAMES), NAMES),
        (pd.DataFrame(X, columns=["a", "a", "b"]), ["a", "a", "b"]),
        (pd.DataFrame(X), ["0", "1", "2"]),
        (pd.DataFrame(X, columns=pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)])), ["a.1", "a.2", "b.1"]),
        (pl.DataFrame(X, schema=NAMES), NAMES),
        (pa.table(dict(zip(NAMES, X.T, strict=True))), NAMES),
        (pa.record_batch(dict(zip(NAMES, X.T, strict=True))), NAMES),
    ],
)
def test_names_of_columns_reach_the_layout(table, names):
    assert column_names(table) == tuple(names)
    assert ArraySource(table).layout.columns == tuple(names)


def test_what_has_columns_but_not_one_a_value_is_no_table():
    class Pictures:
        columns = ("one", "two")

        def __array__(self, dtype=None, copy=None):
            return np.ones((3, 5))

    assert ArraySource(Pictures()).layout.columns == ()


# ----------------------------------------------------------------------------------------------------------- cells


def test_missing_values_are_nan():
    x = np.array([[None, pd.NA], [np.float32("nan"), 1]], dtype=object)
    assert np.array_equal(as_rows(x).numpy(), [[np.nan, np.nan], [np.nan, 1]], equal_nan=True)
    assert as_rows([[1, None]])[0, 1].isnan()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.array([[1, 2], [3, "many"]], dtype=object), TypeError, r"row 1, column 1 holds 'many' \(str\)"),
        (np.array([[1, b"7"]], dtype=object), TypeError, r"row 0, column 1 holds b'7' \(bytes\)"),
        (np.array([[1, 1j]], dtype=object), TypeError, "row 0, column 1 holds 1j"),
        (np.array([[np.datetime64("2020-01-01")]], dtype=object), TypeError, "row 0, column 0 holds np.datetime64"),
        (np.array([[[1, 2], ["x", 4]]], dtype=object), TypeError, r"row 0, position \(1, 0\) holds 'x'"),
        (np.array([[1, 2]], dtype=str), TypeError, r"row 0, column 0 holds '1' \(str\)"),
        ([[1, 2], [3, "x"]], TypeError, "row 1, column 1 holds 'x'"),
        (np.array([[1, 10**400]], dtype=object), ValueError, "row 0, column 1 holds 1000.*beyond what float64"),
        (np.array([[Decimal("1e400")]], dtype=object), ValueError, "row 0, column 0 .*beyond what float64"),
        (np.array([[1, np.longdouble("1e4000")]]), ValueError, "row 0, column 1 .*beyond what float64"),
        (np.zeros((2, 2), "M8[s]"), TypeError, "x is datetime64 in every column; convert to numbers first"),
        (np.zeros((2, 2), "m8[s]"), TypeError, "timedelta64"),
        (np.zeros(3, [("a", "f4"), ("b", "f8")]), TypeError, "structured array with the fields 'a', 'b'"),
        (np.zeros((2, 2), complex), TypeError, "complex"),
        (np.zeros((2, 2), "V4"), TypeError, "real numbers"),
        (np.ma.MaskedArray([[1.0, 2]], [[True, False]]), TypeError, "masked values would be ignored: fill them"),
        ([np.ma.MaskedArray([1.0, 2], [True, False])], TypeError, "masked values would be ignored"),
        (torch.zeros(2, 2, dtype=torch.complex64), TypeError, "complex"),
        (torch.zeros(2, 2).to_sparse(), TypeError, "sparse .*to_dense"),
        (torch.zeros(2, 2, device="meta"), TypeError, "meta tensor"),
        ([torch.ones(3), torch.ones(2)], ValueError, "unequal length"),
        ([[1, 2], [3]], ValueError, "unequal length"),
        (np.float64(3), ValueError, "single number"),
        (None, TypeError, "got a NoneType"),
        ({"a": [1.0]}, TypeError, "got a dict"),
        ("text", TypeError, "got a str"),
    ],
)
def test_what_is_no_number_is_refused_by_place(x, error, message):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(error, match=message) as caught:
            as_rows(x)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_an_object_that_fails_to_become_an_array_is_one_line():
    class Broken:
        def __array__(self, dtype=None, copy=None):
            raise KeyError("no\nvalues")

    with pytest.raises(TypeError, match="Broken.*cannot be read as an array: 'no"):
        as_rows(Broken())


# --------------------------------------------------------------------------------------------------- check_finite


def message(x: torch.Tensor, *args: object, **kwargs: object) -> str:
    with pytest.raises(ValueError) as caught:
        check_finite(x, *args, **kwargs)
    return str(caught.value)


def test_the_first_value_that_is_not_finite_is_named_by_row_and_column():
    x = torch.ones(400, 3)
    check_finite(x)
    x[3, 2] = torch.nan
    assert (
        message(x, columns=["f0", "f1", "f2"])
        == "x holds NaN, first in row 3, column 2 ('f2'), 1 of 1,200 values; fill it or drop the row"
    )
    assert "row 3, column 2, 1 of" in message(x)
    assert "row 3, column 2, 1 of" in message(x, columns=["only", "two"]), "names that do not fit are not used"
    assert "row 103, column 2, 1 of 1,200 values of its batch" in message(x, "the data", torch.arange(400) + 100)


def test_nan_and_infinity_are_told_apart():
    x = torch.zeros(5, 2)
    x[4, 1] = -torch.inf
    assert message(x).startswith("x holds infinity, first in row 4, column 1, 1 of 10 values")
    x[2, 0] = torch.nan
    assert message(x).startswith("x holds NaN and infinity, first in row 2, column 0, 2 of 10 values")


def test_a_place_in_a_picture_has_all_its_numbers():
    x = torch.zeros(2, 3, 4, 5)
    x[1, 2, 3, 4] = torch.nan
    assert "row 1, position (2, 3, 4)" in message(x)


def test_no_rows_are_finite():
    check_finite(torch.zeros(0, 3))


# ----------------------------------------------------------------------------------------------------------- take


def test_a_mapped_file_that_was_cut_short_is_an_error_and_not_the_end(tmp_path: Path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((5000, 16), np.float32))
    for source in (open_source(path), ArraySource(np.load(path, mmap_mode="r")[:, :4])):
        batches = source.batches(1000)
        next(batches)
        whole = path.read_bytes()
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(OSError, match=r"x\.npy was cut short .*expected 320,128 bytes, now it has 1,000"):
            next(batches)
        path.write_bytes(whole)


def test_a_file_replaced_by_rename_is_read_on_as_it_was(tmp_path: Path):
    path = tmp_path / "x.npy"
    np.save(path, np.ones((5000, 4), np.float32))
    batches = open_source(path).batches(1000)
    np.save(tmp_path / "other.npy", np.zeros((1, 4), np.float32))
    (tmp_path / "other.npy").rename(path)
    assert all((batch.x == 1).all() for batch in batches)


def test_aligned_rows_have_the_same_values():
    x = torch.arange(21.0).reshape(7, 3)
    assert torch.equal(aligned(x), x)
    assert aligned(x).stride(0) * 4 % 64 == 0


def test_take_gathers_in_any_order():
    where = torch.tensor([3, 0, 3])
    assert torch.equal(take(as_storage(X.astype(np.uint16), "x"), where), torch.from_numpy(X).float()[where])
