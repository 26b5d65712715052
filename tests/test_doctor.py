"""What the doctor finds."""

import importlib.metadata
import importlib.util

import pytest
import torch

from fewfire.doctor import diagnose
from fewfire.engines import ENGINES


def finding(what):
    return next(f for f in diagnose() if f.what == what)


def test_every_dependency_has_its_version():
    found = {f.what: f for f in diagnose()}
    assert found["torch"].says == torch.__version__
    assert {"numpy", "scikit-learn", "safetensors", "cores", "engine", "folder"} <= set(found)
    assert not [f for f in found.values() if f.state == "problem"]


def test_the_engine_and_why():
    says = finding("engine").says
    assert says.split(" ")[0] in (engine.name for engine in ENGINES)
    assert says.endswith("; there is: " + ", ".join(engine.name for engine in ENGINES))


def test_what_is_missing_and_what_it_would_bring(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "polars" else find(name, *a))
    assert (finding("polars").state, finding("polars").says[:13]) == ("note", "not installed")


@pytest.mark.parametrize("version, state", [("1.9", "problem"), ("2.0", "ok"), ("2.10.1+cu13", "ok"), ("10.0", "ok")])
def test_a_version_that_is_too_old(monkeypatch, version, state):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "numpy" else real(name))
    assert finding("numpy").state == state


def test_a_dependency_that_is_not_there(monkeypatch):
    real = importlib.metadata.version

    def version(name):
        if name == "pyarrow":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert finding("pyarrow").state == "problem"
    assert "install it: pip install" in finding("pyarrow").says


def test_too_many_threads_are_said(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    assert "more threads than cores" in finding("cores").says


def test_a_folder_that_cannot_be_written(monkeypatch):
    monkeypatch.setattr("os.access", lambda *a: False)
    assert finding("folder").state == "problem"
