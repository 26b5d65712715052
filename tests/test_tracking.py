"""metrics.jsonl: nothing lost to a kill, nothing repeated by a resume."""

from __future__ import annotations

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fewfire.tracking import MetricsLog, Tracker, read_metrics


def write(path: Path, steps: range, resume: bool = False, after: int | None = None) -> MetricsLog:
    log = MetricsLog(path, resume=resume)
    if after is not None:
        log.truncate_after(after)
    for step in steps:
        log.log(step, {"loss": 1 / (step + 1), "l0": float(step)})
    return log


def test_records_are_lines_in_order(tmp_path: Path) -> None:
    log = write(tmp_path, range(3))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert lines[1] == '{"step": 1, "loss": 0.5, "l0": 1.0}'
    assert [json.loads(line) for line in lines] == log.history == read_metrics(tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == log.history


def test_a_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(3):
        log.log(step, {})
        assert len(read_metrics(tmp_path)) == step + 1


def test_every_kind_of_value(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "nan": float("nan"),
        "inf": torch.tensor(float("-inf")),
        "tensor": torch.tensor(2.5),
        "int": torch.tensor(7),
        "list": torch.tensor([1.0, float("nan")]),
        "numpy": np.float32(0.5),
        "array": np.arange(2),
        "nested": {"a": (1, float("inf"))},
        "text": "täxt\n",
        "flag": np.bool_(True),
        "none": None,
    }
    log = MetricsLog(tmp_path)
    log.log(np.int64(4), values)  # type: ignore[arg-type]
    expected = {
        "step": 4, "nan": None, "inf": None, "tensor": 2.5, "int": 7, "list": [1.0, None], "numpy": 0.5,
        "array": [0, 1], "nested": {"a": [1, None]}, "text": "täxt\n", "flag": True, "none": None,
    }  # fmt: skip
    assert read_metrics(tmp_path) == [expected] == log.history
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_values_that_are_refused_leave_no_trace(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    with pytest.raises(ValueError, match="another name"):
        log.log(0, {"step": 1})
    with pytest.raises(TypeError, match="got object for 'bad'"):
        log.log(0, {"good": 1, "bad": object()})
    assert log.history == read_metrics(tmp_path) == []


def test_memory_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = MetricsLog()
    for step in range(4):
        log.log(step, {"loss": step})
    log.truncate_after(1)
    log.sync()
    log.finish()
    assert [record["step"] for record in log.history] == [0, 1]
    assert not list(tmp_path.iterdir())


def test_it_is_a_tracker(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    assert isinstance(log, Tracker)
    log.start("run", {"a": 1})
    log.artifact("model", tmp_path)
    log.image("filters", np.zeros((2, 2), np.uint8), 3)
    log.finish()
    assert read_metrics(tmp_path) == []


# ------------------------------------------------------------------------------------------------ resuming


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    straight = write(whole, range(10))
    write(resumed, range(7))
    again = write(resumed, range(5, 10), resume=True, after=4)
    assert resumed.read_bytes() == whole.read_bytes()
    assert again.history == straight.history


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_torn_last_line_is_ignored_and_not_glued_to_the_next(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "metrics.jsonl"
    write(file, range(3))
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    n = len(read_metrics(tmp_path))
    assert n == (3 if cut == 1 else 2)  # one byte less is the newline: the record itself is whole
    log = write(file, range(n, 3), resume=True)
    assert file.read_bytes() == whole
    assert log.history == read_metrics(file)


def test_zeros_after_a_power_cut_are_ignored(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes() + bytes(100))
    assert len(read_metrics(tmp_path)) == 3


def test_without_resume_the_log_starts_empty(tmp_path: Path) -> None:
    write(tmp_path, range(3))
    assert MetricsLog(tmp_path).history == []
    assert read_metrics(tmp_path) == []


def test_resuming_what_never_began(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, resume=True)
    log.truncate_after(5)
    log.log(0, {})
    assert read_metrics(tmp_path) == [{"step": 0}]


@pytest.mark.parametrize("line", [b"{", b"", b"[1]", b'{"loss": 1}', b'{"step": 1, "step": 2}', b"\xff"])
def test_damage_in_the_middle_is_told(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    for read in (read_metrics, lambda path: MetricsLog(path, resume=True)):
        with pytest.raises(ValueError, match="line 2") as caught:
            read(file)
        assert str(file) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert file.read_bytes().count(b"\n") == 3  # and nothing was touched


def test_no_log(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "metrics.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"expected a run folder with a metrics\.jsonl"):
            read_metrics(path)


# ------------------------------------------------------------------------------------------- failing disks


def test_truncating_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path, range(6))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def replace(*args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        log.truncate_after(2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert len(log.history) == 6
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """No mocks: the system itself takes part of the record and refuses the rest."""
    log = write(tmp_path, range(3))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(OSError, match="could not log"):
            log.log(3, {"loss": 0.25})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    log.log(3, {"loss": 0.25})
    assert read_metrics(tmp_path) == log.history
    assert len(log.history) == 4
