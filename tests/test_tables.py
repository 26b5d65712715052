"""Parquet and CSV: the numbers of the file, exactly, whatever way it is written; all else refused in a sentence."""

from __future__ import annotations

import csv as python_csv
import io
import math
import os
import re
from decimal import Decimal
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewfire as ff
from fewfire.contracts import Layout
from fewfire.runs import RunConfig, open_run, train
from fewfire.sources import CsvSource, ParquetSource, dialect, fingerprint, lines, open_source
from fewfire.sources import csv as tables

NAMES = ["alpha", "beta", "gamma"]


def values(source) -> np.ndarray:
    return torch.cat([batch.x for batch in source.batches(64, shuffle=False)]).numpy()


def written(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def refusal(call, *args, **kwargs) -> str:
    """The message of a ValueError: one line, short enough for a terminal."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400 + 120, "a path of a test folder is long"
    return message


# ---------------------------------------------------------------------------------------------------- CSV: the numbers


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("quoted", [True, False])
def test_a_csv_file_has_the_numbers_that_pandas_reads(tmp_path, ending, bom, last, quoted):
    rows = [["alpha", "note, with comma", "beta"], ["1.5", 'says "hi"', "-2e3"], ["", "two\nlines", "NA"]]
    rows += [["+3", "", " 4 "], ["0.1", "x", "1e-320"]]
    text = io.StringIO()
    kind = python_csv.QUOTE_ALL if quoted else python_csv.QUOTE_MINIMAL
    python_csv.writer(text, quoting=kind, lineterminator=ending).writerows(rows)
    content = text.getvalue() + ending  # a blank line at the end
    content = content if last else content.rstrip("\r\n")
    path = written(tmp_path, bom + content.encode())
    source = CsvSource(path, drop=["note, with comma"])
    expected = pd.read_csv(path, usecols=["alpha", "beta"])
    assert source.layout == Layout(columns=("alpha", "beta"))
    np.testing.assert_array_equal(values(source), expected.to_numpy(np.float64))


@given(
    st.lists(
        st.lists(st.floats(width=64) | st.integers(-(2**70), 2**70), min_size=2, max_size=2), min_size=1, max_size=20
    )
)
@settings(max_examples=60, deadline=None)
def test_floats_and_integers_are_rounded_to_nearest(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    path.write_text("a,b\n" + "".join(f"{a!r},{b!r}\n" for a, b in rows))
    expected = np.array([[float(a), float(b)] for a, b in rows])
    np.testing.assert_array_equal(values(CsvSource(path)), expected)


def test_extremes(tmp_path):
    path = written(
        tmp_path, "a\n1e400\n-1e400\n1.7976931348623157e308\n5e-324\n1e-400\n9007199254740993\ninf\n-Infinity\n"
    )
    found = values(CsvSource(path))[:, 0].tolist()
    assert found == [math.inf, -math.inf, 1.7976931348623157e308, 5e-324, 0.0, 2.0**53, math.inf, -math.inf]


def test_what_is_missing_is_nan_and_true_is_one(tmp_path):
    path = written(tmp_path, "a,b\n,true\nNA,False\nnull,\nNaN,TRUE\n7,0\n")
    x = values(CsvSource(path))
    np.testing.assert_array_equal(x[:, 0], [math.nan] * 4 + [7])
    np.testing.assert_array_equal(x[:, 1], [1, 0, math.nan, 1, 0])


def test_blank_lines_are_passed_over(tmp_path):
    path = written(tmp_path, "\n\r\na,b\n\n1,2\n\r\n\n3,4\n\n\n")
    assert values(CsvSource(path)).tolist() == [[1, 2], [3, 4]]
    one = written(tmp_path, "\n5\n\n6\r\n\r\n7", "one.csv")
    assert values(CsvSource(one)).tolist() == [[5], [6], [7]]


@pytest.mark.parametrize("block", [1, 10, 64, 1000, 1 << 22])
@pytest.mark.parametrize("share", [1, 1 << 20])
def test_blocks_of_any_size_give_the_same_rows(tmp_path, monkeypatch, block, share):
    monkeypatch.setattr(lines, "BLOCK_BYTES", block)
    monkeypatch.setattr(tables, "PARSE_BYTES", share)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(100, 3)), columns=NAMES)
    frame["note"] = rng.choice(['a "quote"', "two\r\nlines", "plain", ",", ""], 100)
    frame.to_csv(tmp_path / "t.csv", index=False, lineterminator="\r\n")
    source = CsvSource(tmp_path / "t.csv", drop="note")
    assert len(source.reader.block_rows) == 100 or block > 1
    np.testing.assert_array_equal(values(source), frame[NAMES].to_numpy())


# ------------------------------------------------------------------------------------------------- CSV: where rows end


def by_python(text: str, delimiter: str) -> list[list[str]]:
    return [row for row in python_csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]


def by_us(text: str, delimiter: str, block: int) -> list[list[str]]:
    data = text.encode()
    with mock.patch.object(lines, "BLOCK_BYTES", block):
        blocks = list(lines.line_blocks(io.BytesIO(data), 0, 1, delimiter.encode(), "t"))
    found = []
    for place in blocks:
        assert place.line == 1 + data[: place.offset].count(b"\n")
        part = list(lines.rows_of(data[place.offset : place.offset + place.size], delimiter.encode()))
        rows = [lines.cells_of(row[0], delimiter.encode()) for row in part if not lines.is_blank(row[0])]
        assert len(rows) == place.rows
        found += [[cell.decode() for cell in row] for row in rows]
    return found


pieces = st.sampled_from(['"', '""', ",", ";", "\n", "\r\n", "a", "1.5", " ", "é", '"x, y"', '"l\nm"', '"r\r"', "\r"])


@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(",;"), st.sampled_from([1, 2, 5, 17, 1 << 22]))
@settings(max_examples=1500, deadline=None)
def test_rows_end_where_python_says(text, delimiter, block):
    try:
        found = by_us(text, delimiter, block)
    except ValueError as error:
        if "carriage return" in str(error):
            assert re.search("\r(?!\n)", text)
        else:
            assert "never closed" in str(error)
            assert by_python(text + "\nend", delimiter)[-1] != ["end"]
        return
    assert found == by_python(text, delimiter)


def test_a_text_without_quotes_is_split_as_one_with():
    text = b"1,2\n\n3,4\r\n\r\n5,6\n7,"
    for last in (True, False):
        assert lines._whole_rows(text, b",", last) == lines._whole_quoted_rows(text, b",", last)


def test_the_lines_of_later_blocks_are_counted_through_quotes(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 40)
    path = written(tmp_path, 'a,t\n1,"two\nlines"\n' * 1 + '2,"and\n\nthree"\n' * 9 + "x,plain\n")
    message = refusal(values, CsvSource(path, drop="t"))
    assert "line 31, column 'a': expected a number, got 'x'" in message


# ---------------------------------------------------------------------------------------------- CSV: how it is written


@pytest.mark.parametrize(
    ("content", "options", "names", "expected"),
    [
        ("a;b\n1;2\n", {}, ("a", "b"), [[1, 2]]),
        ("a\tb\n1\t2\n", {}, ("a", "b"), [[1, 2]]),
        ("a|b\n1|2\n", {}, ("a", "b"), [[1, 2]]),
        ("a, b\n1, 2\n", {}, ("a", "b"), [[1, 2]]),
        ("a;b\n1,5;2,5\n", {"decimal": ","}, ("a", "b"), [[1.5, 2.5]]),
        ("1,5;2,5\n3,5;4,5\n", {"decimal": ","}, ("x0", "x1"), [[1.5, 2.5], [3.5, 4.5]]),
        ("1 2\n3 4\n", {"delimiter": " "}, ("x0", "x1"), [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", {}, ("x0", "x1"), [[1, 2], [3, 4]]),
        ("1,2\n3,4\n", {"header": True}, ("1", "2"), [[3, 4]]),
        ("0,1,2\n7,8,9\n", {}, ("0", "1", "2"), [[7, 8, 9]]),
        ("0,1,2\n7,8,9\n", {"header": False}, ("x0", "x1", "x2"), [[0, 1, 2], [7, 8, 9]]),
        ("a,,b\n1,2,3\n", {}, ("a", "x1", "b"), [[1, 2, 3]]),
        ('"a;b";"c"\n1;2\n', {}, ("a;b", "c"), [[1, 2]]),
        ("a\n1\n2\n", {}, ("a",), [[1], [2]]),
        ("5\n6\n", {}, ("x0",), [[5], [6]]),
        ("é,名前\n1,2\n", {}, ("é", "名前"), [[1, 2]]),
        ("a,b\n1,2\n", {"columns": ["b"]}, ("b",), [[2]]),
        ("a,b\n1,2\n", {"columns": "b"}, ("b",), [[2]]),
        ("a,b,c\n1,2,3\n", {"columns": ["c", "a"]}, ("c", "a"), [[3, 1]]),
        ("a,b,c\n1,2,3\n", {"columns": ["c", "a"], "drop": ["a"]}, ("c",), [[3]]),
        ("2019,2020\nx,2\n", {"header": True, "drop": [2019]}, ("2020",), [[2]]),
        ("a,a,b\n1,2,3\n", {}, ("a", "a", "b"), [[1, 2, 3]]),
        ("a,a,b\n1,2,3\n", {"columns": ["b", "a", "a"]}, ("b", "a", "a"), [[3, 1, 2]]),
        ("a,a,b\nx,y,3\n", {"drop": ["a"]}, ("b",), [[3]]),
    ],
)
def test_how_a_csv_file_may_be_written(tmp_path, content, options, names, expected):
    source = CsvSource(written(tmp_path, content), **options)
    assert source.layout.columns == names
    assert values(source).tolist() == expected


def test_a_tsv_file_is_cut_at_tabs(tmp_path):
    source = open_source(written(tmp_path, "a,b\tc\n1\t2\n", "t.tsv"))
    assert source.layout.columns == ("a,b", "c")


def test_the_index_that_pandas_writes_is_left_out_with_a_word(tmp_path):
    frame = pd.DataFrame(np.eye(4)[:, :3], columns=NAMES)
    frame.to_csv(tmp_path / "t.csv")
    with pytest.warns(UserWarning, match=r"column 'x0' counts the rows and has no name; it is left out"):
        source = CsvSource(tmp_path / "t.csv")
    assert source.layout.columns == tuple(NAMES)
    assert CsvSource(tmp_path / "t.csv", columns=["x0", "alpha"]).row_shape == (2,)
    assert CsvSource(tmp_path / "t.csv", columns=NAMES).row_shape == (3,)
    frame.index = [3, 1, 4, 1]
    frame.to_csv(tmp_path / "u.csv")
    assert CsvSource(tmp_path / "u.csv").row_shape == (4,), "it counts nothing, so it may mean something"
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(UserWarning, match=r"column '__index_level_0__' is the index that pandas wrote"):
        source = ParquetSource(tmp_path / "t.parquet")
    assert source.layout.columns == tuple(NAMES)


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (b"", {}, "is empty"),
        (b"\n\r\n\n", {}, "is empty"),
        (b"\xef\xbb\xbf", {}, "is empty"),
        (b"a,b\n", {}, "a header and no rows"),
        (b"a,b\n\n\n", {}, "a header and no rows"),
        ("a,b\n1,2\n".encode("utf-16"), {}, "is UTF-16; save it as UTF-8"),
        (b"a,b\n1,2\n3\n", {}, "line 3: expected 2 cells as in the first line, got 1"),
        (b"a,b\n1,2\n3,4,5\n", {}, "line 3: expected 2 cells as in the first line, got 3"),
        (b"a,b\n1,2\n\n3,4\n5,6,\n", {}, "line 5: expected 2 cells as in the first line, got 3"),
        (b"a,b\n1,\xff\n", {}, "line 2: expected UTF-8, got the byte 0xff"),
        (b"a,\xe9\n1,2\n", {}, "line 1: expected UTF-8, got the byte 0xe9"),
        (b"a,b\n1,2\n3,\0\n", {}, "line 3: expected text, got a zero byte"),
        (b"a\0,b\n1,2\n", {}, "line 1: expected text, got a zero byte"),
        (b"a,b\n1,2\r3,4\r", {}, "line 2: a carriage return in the middle of the line"),
        (b'a,b\n1,2\n"3,4\n5,6\n', {}, "line 3: a quote is opened and never closed"),
        (b'"a,b\n1,2\n', {}, "line 1: a quote is opened and never closed"),
        (b"a,b\n1,x\n", {}, r"got 'b' (text such as 'x'); leave them out: drop=[...], on the command line "
                            r'--set "data.options.drop=[b]"'),
        (b"when,id,v\n2020-01-01,x,1\n", {}, "'when' (dates or times such as '2020-01-01'), 'id' (text such as 'x')"),
        (b"a;b\n1,5;2,5\n", {}, "if that is a decimal comma, decimal=',' reads it"),
        (b"a,b\n1,2\n", {"columns": ["c"]}, "has no column 'c'; it has 'a', 'b'"),
        (b"alpha,b\n1,2\n", {"columns": ["alhpa"]}, "did you mean 'alpha'?"),
        (b"a,b\n1,2\n", {"drop": ["c"]}, "has no column 'c'"),
        (b"a,b\n1,2\n", {"drop": ["a", "b"]}, "no column is left to read"),
        (b"a,a\n1,2\n", {"columns": ["a"]}, "column 'a' is there 2 times and was asked for 1 times"),
        (b"a,b\n1,2\n", {"columns": ["a", "a"]}, "column 'a' is there 1 times and was asked for 2 times"),
        (b"a,b\n1,2\n", {"delimiter": ",,"}, "delimiter of one character"),
        (b"a,b\n1,2\n", {"delimiter": 5}, "delimiter of one character"),
        (b"a,b\n1,2\n", {"delimiter": '"'}, "delimiter of one character"),
        (b"a,b\n1,2\n", {"delimiter": ",", "decimal": ","}, "delimiter of one character"),
        (b"a,b\n1,2\n", {"decimal": "'"}, "expected decimal '.' or ','"),
        (b"a,b\n1,2\n", {"layout": {"kind": "image", "shape": [2, 2]}}, "layout describes"),
    ],
)  # fmt: skip
def test_a_csv_file_that_cannot_be_read_is_one_clear_line(tmp_path, content, options, says):
    message = refusal(lambda: values(CsvSource(written(tmp_path, content), **options)))
    assert says in message
    assert "t.csv" in message or options


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        ("x", "column 'beta': expected a number, got 'x'"),
        ("1,5", "expected 3 cells as in the first line, got 4"),
        ('"1,5"', "expected a number, got '1,5'"),
        ("0x10", "got '0x10'"),
        ("2020-01-01", "got '2020-01-01'"),
        ("1 000", "got '1 000'"),
    ],
)
def test_a_later_cell_that_is_no_number_is_named_by_line_and_column(tmp_path, monkeypatch, cell, says):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 200)
    path = written(tmp_path, "alpha,beta,ok\n" + "1,2,true\n" * 500 + f"1,{cell},true\n" + "1,2,true\n" * 500)
    source = CsvSource(path)
    message = refusal(values, source)
    assert f"line 502{'' if 'cells' in says else ','}" in message
    assert says in message
    path = written(tmp_path, "ok,alpha\n" + "true,1\n" * 100 + "2,1\n")
    assert "line 102, column 'ok': expected true or false" in refusal(lambda: values(CsvSource(path)))


def test_a_line_without_an_end_is_refused_and_a_long_one_is_not(tmp_path, monkeypatch):
    wide = ",".join(map(str, range(2000)))
    with monkeypatch.context() as patch:
        patch.setattr(lines, "BLOCK_BYTES", 100)
        assert values(CsvSource(written(tmp_path, f"{wide}\n{wide}\n"), header=False)).shape == (2, 2000)
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 16)
    monkeypatch.setattr(lines, "MAX_ROW_BYTES", 1 << 20)
    monkeypatch.setattr(dialect, "MAX_ROW_BYTES", 1 << 20)
    ones = b"1" * (1 << 21)
    for content, line in ((b"a,b\n" + ones, 2), (ones, 1), (b"a,b\n1,2\n" + ones + b"\n1,2\n", 3)):
        assert f"line {line}: no line is longer than 1 MiB" in refusal(CsvSource, written(tmp_path, content))


def test_quotes_in_the_middle_of_text_are_text(tmp_path):
    path = written(tmp_path, 'a,t\n1,5" pipe\n2,6" pipe, 3"\n'.replace(", 3", " 3") + '3,"x"y"z"\n4,"p, ""q"""\n')
    assert values(CsvSource(path, drop="t")).tolist() == [[1], [2], [3], [4]]


def test_many_text_columns_are_one_short_error(tmp_path):
    path = written(tmp_path, ",".join(f"column_{i}" for i in range(300)) + "\n" + ",".join(["text"] * 300) + "\n")
    assert "and 295 more" in refusal(CsvSource, path)


# ------------------------------------------------------------------------------------------------------------- Parquet

TYPES = {
    "bool": (pa.array([True, None, False]), np.float32),
    "int8": (pa.array([-128, None, 127], pa.int8()), np.float32),
    "uint16": (pa.array([0, None, 65535], pa.uint16()), np.float32),
    "float16": (pa.array([np.float16(0.1), None, np.float16(65504)], pa.float16()), np.float32),
    "float32": (pa.array([0.1, None, 3e38], pa.float32()), np.float32),
    "int32": (pa.array([2**31 - 1, None, -(2**31)], pa.int32()), np.float64),
    "int64": (pa.array([2**53 + 1, None, -(2**62) - 1], pa.int64()), np.float64),
    "uint64": (pa.array([2**64 - 1, None, 0], pa.uint64()), np.float64),
    "float64": (pa.array([1e300, None, 5e-324], pa.float64()), np.float64),
    "decimal": (pa.array([Decimal("1.10"), None, Decimal("-12345.67")], pa.decimal128(9, 2)), np.float64),
}


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_columns(tmp_path, kind):
    column, dtype = TYPES[kind]
    pq.write_table(pa.table({"a": column, "b": pa.array([1, 2, 3], pa.int8())}), tmp_path / "t.parquet")
    x = values(ParquetSource(tmp_path / "t.parquet"))
    assert x.dtype == dtype
    expected = [math.nan if v is None else float(v) for v in column.to_pylist()]
    np.testing.assert_array_equal(x[:, 0], np.array(expected, dtype))
    assert x[:, 1].tolist() == [1, 2, 3]


def test_columns_in_the_order_wanted(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": [1.0], "note": ["x"], "b": [2.0], "when": [pd.Timestamp(0)], "c.d": [3.0]}), path)
    source = ParquetSource(path, columns=["c.d", "a"])
    assert source.layout.columns == ("c.d", "a")
    assert values(source).tolist() == [[3, 1]]
    assert values(ParquetSource(path, drop=["note", "when"])).tolist() == [[1, 2, 3]]
    message = refusal(ParquetSource, path)
    assert "'note' (text), 'when' (timestamp[" in message
    assert '--set "data.options.drop=[note, when]"' in message


def test_names_that_repeat(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array([1.0]), pa.array([2.0]), pa.array(["x"])], names=["a", "a", "t"]), path)
    assert values(ParquetSource(path, drop="t")).tolist() == [[1, 2]]
    assert values(ParquetSource(path, columns=["a", "a"])).tolist() == [[1, 2]]
    assert "asked for 1 times" in refusal(ParquetSource, path, columns="a")


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pa.array(["x", "y"]).dictionary_encode(), "categories"),
        (pa.array([{"x": 1}, {"x": 2}]), "struct"),
        (pa.array([b"x", b"y"]), "binary"),
        (pa.array([None, None]), "no value at all"),
        (pa.array([1, 2], pa.time32("s")), "time32["),
        (pa.array([1, 2], pa.date32()), "date32[day]"),
        (pa.array([[1.0], [2.0]]), "list"),
        (pa.array([["x"], ["y"]]), "list"),
    ],
)
def test_columns_that_are_no_numbers(tmp_path, column, what):
    pq.write_table(pa.table({"good": [1.0, 2.0], "bad": column}), tmp_path / "t.parquet")
    assert f"'bad' ({what}" in refusal(ParquetSource, tmp_path / "t.parquet")


def test_extension_types_are_columns_that_are_no_numbers(tmp_path):
    frame = pd.DataFrame({"a": [1.0, 2.0], "p": pd.period_range("2020", periods=2, freq="D")})
    frame.to_parquet(tmp_path / "t.parquet")
    assert "'p' (" in refusal(ParquetSource, tmp_path / "t.parquet")
    assert values(ParquetSource(tmp_path / "t.parquet", drop="p")).tolist() == [[1], [2]]


VECTORS = np.arange(600, dtype=np.float32).reshape(50, 12)


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.list_(pa.float32(), 12), pa.large_list(pa.float64())])
@pytest.mark.parametrize("others", [False, True])
def test_a_column_of_lists_is_a_table_of_vectors(tmp_path, kind, others):
    path = tmp_path / "t.parquet"
    columns = {"id": [f"row {i}" for i in range(50)], "tags": [["a"] * (i % 3) for i in range(50)]} if others else {}
    pq.write_table(pa.table({**columns, "embedding": pa.array(list(VECTORS), kind)}), path, row_group_size=20)
    source = ParquetSource(path, columns="embedding" if others else None)
    assert source.row_shape == (12,)
    assert source.layout == Layout("table")
    x = values(source)
    assert x.dtype == (np.float64 if kind == pa.large_list(pa.float64()) else np.float32)
    np.testing.assert_array_equal(x, VECTORS)
    if others:
        message = refusal(ParquetSource, path)
        assert "for the vectors in 'embedding' alone give columns=[embedding]" in message


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ([[1.0, 2], [3]], "lists of different lengths"),
        ([[1.0, 2], [3, 4, 5], [6]], "row 1 holds a list of 3"),
        ([[1.0, 2], None], "lists of different lengths, or none in some rows"),
        ([[1.0], None], "row 1 holds no list"),
        ([[1.0], []], "row 1 holds a list of 0"),
    ],
)
def test_lists_of_different_lengths_are_refused(tmp_path, lists, says):
    pq.write_table(pa.table({"e": pa.array(lists, pa.list_(pa.float64()))}), tmp_path / "t.parquet")
    assert says in refusal(lambda: values(ParquetSource(tmp_path / "t.parquet")))


def test_missing_values_in_lists_are_nan(tmp_path):
    pq.write_table(pa.table({"e": pa.array([[1.0, None], [None, 4.0]])}), tmp_path / "t.parquet")
    np.testing.assert_array_equal(values(ParquetSource(tmp_path / "t.parquet")), [[1, math.nan], [math.nan, 4]])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"not parquet", b"PAR1" + b"\xff" * 100 + b"PAR1"])
def test_what_is_not_parquet_is_one_clear_line(tmp_path, content):
    assert "t.parquet is not a readable Parquet file" in refusal(ParquetSource, written(tmp_path, content, "t.parquet"))


def test_a_table_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.float64())}), tmp_path / "t.parquet")
    assert "it has no rows" in refusal(ParquetSource, tmp_path / "t.parquet")


# ----------------------------------------------------------------------------------------------- both: the file itself


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path) -> Path:
    """400 rows of three columns in several blocks."""
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(400, 3)), columns=NAMES)
    path = tmp_path / f"t.{request.param}"
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path, row_group_size=50)
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 2000)


SMALL = 100 * (3 * 8 + 16)
"""bytes of a pool of 100 rows"""


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("change", ["written to", "cut short", "replaced", "removed"])
def test_a_file_that_changes_while_it_is_read_is_an_error_and_never_other_numbers(
    table, small_blocks, monkeypatch, change, shuffle
):
    monkeypatch.setattr("fewfire.sources.blocks.PIECE_BYTES", 1)
    source = open_source(table, shuffle_bytes=SMALL)
    whole = values(source)
    batches = source.batches(10, shuffle=shuffle)
    seen = [next(batches)]
    content = table.read_bytes()
    if change == "written to":
        os.utime(table, (1, 1))
    elif change == "cut short":
        table.write_bytes(content[: len(content) // 2])
    elif change == "replaced":
        table.unlink()
        table.write_bytes(content.replace(b"1", b"2"))
        os.utime(table, (2, 2))
    else:
        table.unlink()
    with pytest.raises(ValueError, match=rf"{table.name} (was changed|went away) while it was read"):
        seen.extend(batches)
    for batch in seen:
        np.testing.assert_array_equal(batch.x.numpy(), whole[batch.rows.numpy()])
    with pytest.raises(ValueError, match="while it was read"):
        list(source.batches(10))
    with pytest.raises((ValueError, FileNotFoundError)):
        _ = source.split(0.5)[0].fingerprint


def test_a_table_that_was_read_and_kept_is_used_whatever_becomes_of_its_file(table):
    source = open_source(table)
    whole = values(source)
    table.unlink()
    np.testing.assert_array_equal(values(source), whole)
    assert source.fingerprint


def test_fingerprints(table, small_blocks, monkeypatch):
    def of(**options) -> str:
        return open_source(table, **options).fingerprint

    different = [of(), of(columns=NAMES[:2]), of(columns=NAMES[::-1]), of(drop=NAMES[0]), of(shuffle_bytes=SMALL)]
    assert len(set(different)) == len(different)
    os.utime(table, (1, 1))
    assert of() == different[0], "of a small file the content alone counts"
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 100)
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 64)
    first = of()
    os.utime(table, (2, 2))
    assert of() != first
    os.utime(table, (1, 1))
    assert of() == first


def test_a_large_file_is_told_by_its_first_and_last_block(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "WHOLE_BYTES", 100)
    monkeypatch.setattr(fingerprint, "BLOCK_BYTES", 8)
    digests = set()
    for content in ("1,2\n" * 200, "3,2\n" + "1,2\n" * 199, "1,2\n" * 199 + "1,3\n"):
        path = written(tmp_path, content)
        os.utime(path, (1, 1))
        digests.add(CsvSource(path).fingerprint)
    assert len(digests) == 3


def test_a_file_that_is_not_there(tmp_path):
    for kind in (CsvSource, ParquetSource):
        with pytest.raises(FileNotFoundError, match="no such file"):
            kind(tmp_path / "absent")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(FileNotFoundError, match="no such file"):
        CsvSource(tmp_path / "folder.csv")


# ------------------------------------------------------------------------------------------------------ both: training


def config(path: Path, **training) -> RunConfig:
    options = {"shuffle_bytes": SMALL}
    defaults = {"steps": 40, "batch_size": 32, "checkpoint_every": 5, "validation_fraction": 0.2, "validate_every": 9}
    return RunConfig.model_validate(
        {"data": {"path": str(path), "options": options}, "train": {**defaults, **training}}
    )


@pytest.mark.parametrize("stop", [3, 12, 27])
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(table, small_blocks, tmp_path, monkeypatch, stop):
    """Pools, blocks and batches end at different rows, and training stops in the middle of each."""
    assert not open_source(table, shuffle_bytes=SMALL).fits
    whole = train(config(table), tmp_path / "whole", progress=False)
    step = ff.Trainer._step

    def interrupted(self, batch):
        if self.state.step == stop:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(ff.Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(config(table), tmp_path / "run", progress=False)
    resumed = train(config(table), tmp_path / "run", resume=True, progress=False)
    weights, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_run_is_not_resumed_on_other_data(table, small_blocks, tmp_path):
    train(config(table), tmp_path / "run", progress=False)
    frame = pd.DataFrame(np.ones((400, 3)), columns=NAMES)
    frame.to_csv(table, index=False) if table.suffix == ".csv" else frame.to_parquet(table)
    with pytest.raises(ValueError, match="cannot resume.*data"):
        train(config(table), tmp_path / "run", resume=True, progress=False)


def test_nan_is_named_by_its_row(tmp_path):
    path = written(tmp_path, "a,b\n" + "1,2\n3,1\n" * 50 + ",2\n" + "4,4\n")
    with pytest.raises(ValueError, match="row 100"):
        train(RunConfig.model_validate({"data": {"path": str(path)}, "train": {"steps": 5}}), tmp_path / "run")


@pytest.mark.parametrize("source", ["csv", "parquet"])
def test_end_to_end_on_the_command_line(tmp_path, source, monkeypatch):
    from typer.testing import CliRunner

    from fewfire.cli import app

    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(300, 3)), columns=["a b", "ä", "c"])
    frame.to_csv("t.csv", index=False)
    frame.to_parquet("t.parquet")

    def fewfire(*words: str):
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, (done.output, done.exception)
        return done

    fewfire("train", f"t.{source}", "--out", "run", "--set", "train.steps=30")
    assert "n_rows" in fewfire("evaluate", "run").output
    fewfire("encode", "run", "t.parquet", "--out", "codes.npz")
    fewfire("encode", "run", "t.csv", "--out", "codes.parquet")
    fewfire("reconstruct", "run", "t.csv", "--out", "x.parquet")
    fewfire("report", "run")
    assert pq.read_table("x.parquet").column_names == ["a b", "ä", "c"]
    recon = open_run("run").model.reconstruct(frame.to_numpy())
    np.testing.assert_array_equal(values(open_source("x.parquet")), recon.numpy())
    message = refusal(open_source, "codes.parquet")
    assert "holds the codes that `fewfire encode` wrote" in message
