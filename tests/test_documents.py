"""Texts as people have them: read as they stand, or refused with the line."""

import gzip
import json
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fewfire.harvesting import docstrings, documents, read_documents
from fewfire.harvesting.docstrings import _of_paragraph

TEXTS = ["few features, fire", "", 'a "quoted" one', "two\twords", "ünïcode ✓ 漢字"]
LABELS = ["a", "b", None, "1", "2"]
BOTH = list(zip(TEXTS, LABELS, strict=True))


def write(path, text):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def found(path, **options):
    return [tuple(document) for document in read_documents(path, **options)]


def test_txt(tmp_path):
    for text in ("\n".join(TEXTS), "\n".join(TEXTS) + "\n", "\r\n".join(TEXTS) + "\r\n", "﻿" + "\n".join(TEXTS)):
        assert found(write(tmp_path / "t.txt", text)) == [(text, None) for text in TEXTS]


def test_jsonl(tmp_path):
    lines = [json.dumps({"text": text, "label": label, "more": [1]}) for text, label in BOTH]
    path = write(tmp_path / "t.jsonl", "\n".join([*lines, "", json.dumps("alone")]))
    assert found(path) == [*((text, None) for text in TEXTS), ("alone", None)]
    path = write(tmp_path / "t.jsonl", "\n".join(lines))
    assert found(path, label="label") == BOTH
    assert found(write(tmp_path / "n.jsonl", json.dumps({"text": "a", "label": 3})), label="label") == [("a", "3")]


def test_csv(tmp_path):
    def cell(text):
        return '"' + text.replace('"', '""') + '"'

    for name, mark in (("t.csv", ","), ("t.tsv", "\t")):
        rows = ["id,text,label".replace(",", mark)]
        rows += [mark.join((str(i), cell(text), label or "")) for i, (text, label) in enumerate(BOTH)]
        path = write(tmp_path / name, "\n".join(rows) + "\n\n")
        assert found(path, label="label") == [(text, label or "") for text, label in BOTH]
        assert found(path, column="id")[1] == ("1", None)
    assert found(write(tmp_path / "t.csv", 'body\n"two\nlines"\n')) == [("two\nlines", None)]


def test_parquet(tmp_path):
    pq.write_table(pa.table({"n": range(5), "body": TEXTS, "tag": LABELS}), tmp_path / "t.parquet", row_group_size=2)
    assert found(tmp_path / "t.parquet", label="tag") == BOTH
    some = islice(read_documents(tmp_path / "t.parquet", column="tag", label="n"), 2)
    assert list(map(tuple, some)) == [("a", "0"), ("b", "1")]


def test_gzipped(tmp_path):
    (tmp_path / "t.txt.gz").write_bytes(gzip.compress("\n".join(TEXTS).encode()))
    assert found(tmp_path / "t.txt.gz") == [(text, None) for text in TEXTS]


def test_files_are_read_as_they_are_needed(tmp_path):
    path = write(tmp_path / "t.jsonl", '{"text": "one"}\nnot JSON')
    assert [d.text for d in islice(read_documents(path), 1)] == ["one"]


@pytest.mark.parametrize(
    "name, content, options, says",
    [
        ("t.txt", b"\xff\xfe", {}, "utf-8"),
        ("t.txt", "a", {"column": "text"}, "no columns or labels"),
        ("t.jsonl", '{"text": "a"}\n{"text": ', {}, "line 2 is not JSON"),
        ("t.jsonl", "[1]", {}, "line 1: expected an object"),
        ("t.jsonl", '{"text": 3}', {}, "line 1: expected text in 'text', got 3"),
        ("t.jsonl", '{"text": null}', {}, "got None"),
        ("t.jsonl", '{"body": "a", "title": "b"}', {}, "which column holds the texts"),
        ("t.jsonl", '{"text": "a"}', {"label": "lable"}, "no column 'lable' (--label)"),
        ("t.jsonl", "[" * 100_000, {}, "line 1 is not JSON"),
        ("t.csv", "", {}, "it is empty"),
        ("t.csv", "text,label\na,b\nc\n", {}, "line 3: expected 2 cells, got 1"),
        ("t.csv", "a,b\n1,2\n", {}, "which column holds the texts"),
        ("t.csv", "text\n1\n", {"column": "txt"}, "did you mean 'text'"),
        ("t.csv", 'text\n"a\n', {}, "damaged"),
        ("t.csv", f"text\n{'a' * 140_000}\n", {}, "a .jsonl or .parquet has no such limit"),
        ("t.parquet", "PAR1 no", {}, "damaged"),
        ("t.txt.gz", "no gzip", {}, "damaged"),
        ("t.txt.gz", gzip.compress(b"words and words " * 99)[:40], {}, "damaged"),
        ("t.docx", "a", {}, "cannot tell how to read texts"),
        ("texts", "a", {}, "cannot tell how to read texts"),
        ("t.parquet.gz", "a", {}, "cannot tell how to read texts"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, options, says):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError) as caught:
        found(path, **options)
    line = str(caught.value)
    assert says in line and name in line and "\n" not in line and len(line) < 400


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_documents(tmp_path / "t.txt")
    with pytest.raises(ValueError, match="cannot tell"):
        read_documents(tmp_path)


@pytest.mark.parametrize("name", ["t.txt", "t.csv", "t.jsonl"])
def test_a_line_without_end(tmp_path, monkeypatch, name):
    monkeypatch.setattr(documents, "MAX_LINE", 100)
    with pytest.raises(ValueError, match=r"line|million"):
        found(write(tmp_path / name, "text\n" + '"' + "a" * 1000))


def test_prose_that_comes_along(monkeypatch):
    monkeypatch.setattr(docstrings, "PACKAGES", ("numpy", "no_such_package"))
    some = list(islice(read_documents("docstrings"), 300))
    assert len({document.text for document in some}) == 300
    assert len({document.label for document in some}) > 5
    assert all(document.text[-1] in ".!?" and len(document.text.split()) > 7 for document in some)


@pytest.mark.parametrize(
    "paragraph, sentences",
    [
        (
            "Compute the ``mean`` of every column, and\nthen *take* it away from :class:`the rows <a.b>`. Too short.",
            ["Compute the mean of every column, and then take it away from the rows ."],
        ),
        (">>> compute(the mean of every column and then take it)", []),
        ("x : array of the mean of every column, which is then taken away.", []),
        ("lower case words at the beginning of what should be a sentence are left out.", []),
    ],
)
def test_what_prose_is(paragraph, sentences):
    assert [s.replace("rows.", "rows .") for s in _of_paragraph(paragraph)] == sentences
