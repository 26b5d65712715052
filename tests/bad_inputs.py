"""Inputs that go wrong elsewhere, what fewfire makes of each at every entry point, and the table that says so.

    python tests/bad_inputs.py > docs/bad-input.md

A case is either taken, and then gives what the same numbers give as a plain float64 matrix, or refused in one line.
"""

from __future__ import annotations

import datetime
import decimal
import io
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import scipy.sparse as sp
import torch

import fewfire as ff
from fewfire import cli

N, D = 40, 6
NAMES = [f"f{i}" for i in range(D)]


def plain() -> npt.NDArray[np.float64]:
    """Small whole numbers, which every numeric type holds exactly; no column is constant."""
    return np.random.default_rng(0).integers(0, 9, size=(N, D)).astype(np.float64)


X = plain()


def spoiled(value: Any, dtype: Any = np.float64) -> npt.NDArray[Any]:
    x = plain().astype(dtype)
    x[3, 2] = value
    return x


@dataclass(frozen=True)
class Case:
    """One input."""

    name: str
    make: Callable[[], Any]
    means: npt.NDArray[np.float64] | None = None
    """the numbers that it stands for, when it may be taken"""
    says: tuple[str, ...] = ()
    """words, one of which every refusal holds"""
    also_taken_by: tuple[str, ...] = ()
    """entry points that take it where others refuse; what comes out is finite"""
    late: bool = False
    """a fault only beside the data that the model was trained on: it is fitted on X first"""


def frame(x: Any = X, **kwargs: Any) -> pd.DataFrame:
    return pd.DataFrame(x, columns=NAMES, **kwargs)


def mapped() -> Any:
    path = Path(tempfile.mkdtemp()) / "x.npy"
    np.save(path, X)
    return np.load(path, mmap_mode="r")


def readonly() -> Any:
    x = plain()
    x.flags.writeable = False
    return x


def masked(some: bool) -> Any:
    mask = np.zeros(X.shape, bool)
    mask[3, 2] = some
    return np.ma.MaskedArray(plain(), mask)


def dated() -> pd.DataFrame:
    return frame().assign(f2=pd.date_range("2020-01-01", periods=N))


def with_object(value: Any) -> npt.NDArray[Any]:
    return spoiled(value, object)


def scaled(by: float) -> npt.NDArray[np.float64]:
    return X * np.array([by, 1, 1, 1, 1, 1])


CONSTANT = np.where(np.arange(D) == 2, 7.0, X)
NONFINITE = ("NaN", "infinity")
DATES = ("datetime", "date", "DateTime", "dtype")
KIND = ("real numbers", "convert", "number", "numeric", "float")
PICKLED = ("pickle", "object", "Python")
SHAPE = ("dim", "shape", "1-d", "2D", "rows")

OF_THE_MODEL = ("encode", "encode_sparse", "reconstruct")
BY_NAME = ("fewfire encode",)  # rightly: tests/test_columns.py
IN_FLOAT64 = (*OF_THE_MODEL, "estimator.transform", "estimator.reconstruct", "fewfire encode")

CASES = [
    # ------------------------------------------------------------------------------------ values
    Case("NaN", lambda: spoiled(np.nan), None, NONFINITE),
    Case("+infinity", lambda: spoiled(np.inf), None, NONFINITE),
    Case("-infinity", lambda: spoiled(-np.inf), None, NONFINITE),
    Case("a column of 1e30", lambda: scaled(1e30), scaled(1e30), ("overflow", "large", "scale")),
    Case("a column of 1e200", lambda: scaled(1e200), None, ("overflow", "large", "scale", "finite"), IN_FLOAT64),
    Case("a column of 1e-30", lambda: scaled(1e-30), scaled(1e-30)),
    Case("a constant column", lambda: CONSTANT, CONSTANT),
    Case("all columns constant", lambda: np.full((N, D), 3.0), np.full((N, D), 3.0)),
    # ------------------------------------------------------------------------------------ shapes
    Case("no rows", lambda: X[:0], None, ("0 sample", "at least", "minimum", "no rows"), OF_THE_MODEL),
    Case("no columns", lambda: X[:, :0], None, ("0 feature", "column", "shape")),
    Case("one row", lambda: X[:1], X[:1], ("n_samples", "sample", "row")),
    Case("one column", lambda: X[:, :1], X[:, :1]),
    Case("1-d", lambda: X[:, 0], None, SHAPE),
    Case("3-d", lambda: X.reshape(N, 2, 3), None, SHAPE),
    Case("a single number", lambda: 3.0, None, (*SHAPE, "read data", "array", "scalar")),
    Case("rows of unequal length", lambda: [[1.0, 2.0], [3.0]], None, ("unequal", "inhomogeneous", "sequence")),
    # ------------------------------------------------------------------------------------ dtypes
    Case("float16", lambda: X.astype(np.float16), X),
    Case("int64", lambda: X.astype(np.int64), X),
    Case("uint8", lambda: X.astype(np.uint8), X),
    Case("bool", lambda: X > 4, (X > 4).astype(float)),
    Case("longdouble", lambda: X.astype(np.longdouble), X),
    Case("big-endian", lambda: X.astype(">f8"), X),
    Case("complex", lambda: X.astype(complex), None, ("omplex", "real numbers")),
    Case("datetime64", lambda: X.astype("int64").astype("datetime64[s]"), None, DATES),
    Case("timedelta64", lambda: X.astype("int64").astype("timedelta64[s]"), None, ("timedelta", "dtype", "date")),
    Case("objects that are numbers", lambda: X.astype(object), X, PICKLED),
    Case("objects, one of them text", lambda: with_object("many"), None, KIND),
    Case("objects, one of them None", lambda: with_object(None), None, (*NONFINITE, *KIND)),
    Case("objects, one of them bytes", lambda: with_object(b"7"), None, (*KIND, "bytes")),
    Case("Decimal", lambda: np.vectorize(decimal.Decimal, otypes=[object])(X), X, PICKLED),
    Case("text that looks like numbers", lambda: X.astype(str), None, KIND),
    Case(
        "a structured array",
        lambda: np.zeros(N, [("a", float), ("b", float)]),
        None,
        ("structured", *KIND, *SHAPE, "fields"),
    ),
    # ------------------------------------------------------------------------------------ memory
    Case("Fortran order", lambda: np.asfortranarray(X), X),
    Case("strided", lambda: np.repeat(X, 2, axis=1)[:, ::2], X),
    Case("negative stride", lambda: X[::-1, ::-1].copy()[::-1, ::-1], X),
    Case("read-only", readonly, X),
    Case("memory-mapped", mapped, X),
    Case("np.matrix", lambda: np.asmatrix(X), X, ("matrix",)),
    Case("masked array", lambda: masked(True), None, ("mask",)),
    Case("masked array, nothing masked", lambda: masked(False), X, ("mask",)),
    # ------------------------------------------------------------------------------------ containers
    Case("list of lists", lambda: X.tolist(), X),
    Case("scipy CSR", lambda: sp.csr_array(X), X, ("sparse",)),
    Case("scipy COO matrix", lambda: sp.coo_matrix(X), X, ("sparse",)),
    Case("torch tensor", lambda: torch.tensor(X), X),
    Case("torch tensor, requires_grad", lambda: torch.tensor(X, requires_grad=True), X),
    Case("torch bfloat16", lambda: torch.tensor(X, dtype=torch.bfloat16), X),
    Case("sparse torch tensor", lambda: torch.tensor(X).to_sparse(), None, ("sparse",)),
    Case("pandas", frame, X),
    Case("pandas Int64, no NA", lambda: frame(X.astype(int)).astype("Int64"), X),
    Case("pandas Int64 with NA", lambda: _with_na(), None, (*NONFINITE, "NA", "missing")),
    Case("pandas category of numbers", lambda: frame().astype({"f2": "category"}), X, ("category", *KIND)),
    Case("pandas datetime column", dated, None, DATES),
    Case("pandas text column", lambda: frame().assign(f2="many"), None, KIND),
    Case("pandas column of dates", lambda: frame().assign(f2=datetime.date(2020, 1, 1)), None, (*KIND, *DATES)),
    Case("pandas, duplicate names", lambda: pd.DataFrame(X, columns=["a", "a", "b", "c", "d", "e"]), X, ("uplicate",)),
    Case("pandas, numbers as names", lambda: pd.DataFrame(X), X),
    Case("polars", lambda: pl.DataFrame(X, schema=NAMES), X),
    Case("polars with null", lambda: pl.DataFrame(X, schema=NAMES).with_columns(f2=_null()), None, NONFINITE),
    Case("polars text column", lambda: pl.DataFrame(X, schema=NAMES).with_columns(f2=pl.lit("many")), None, KIND),
    Case("None", lambda: None, None, ("NoneType", "None")),
    Case("a dictionary", lambda: {"a": [1.0]}, None, ("dict", "read data", "array")),
    Case("a name of nothing", lambda: "no such data", None, ("no such", "array", "text", "string")),
    # ------------------------------------------------------------------------------------ beside the training data
    Case("too few columns", lambda: X[:, :4], None, ("features", "shape", "column"), late=True),
    Case("columns in another order", lambda: frame()[NAMES[::-1]], None, ("order",), BY_NAME, late=True),
    Case(
        "columns of other names",
        lambda: frame().set_axis(list("abcdef"), axis=1),
        None,
        ("names", "unknown", "no column"),
        late=True,
    ),
]


def _with_na() -> pd.DataFrame:
    x = frame(X.astype(int)).astype("Int64")
    x.iloc[3, 2] = pd.NA
    return x


def _null() -> Any:
    return pl.when(pl.int_range(pl.len()) == 3).then(None).otherwise(pl.col("f2"))


# ---------------------------------------------------------------------------------------------- entry points

FAST = {"n_components": 8, "k": 2, "max_epochs": 2, "random_state": 0}


def estimator() -> Any:
    return ff.SparseAutoencoder(**FAST)


def width_of(data: Any) -> int:
    shape = np.shape(data) if isinstance(data, list | tuple) else tuple(getattr(data, "shape", ()))
    return int(shape[1]) if len(shape) == 2 and shape[1] else D


def train(data: Any, width: int | None = None) -> ff.Autoencoder:
    model = ff.Autoencoder(width or width_of(data), 8, ff.TopK(k=2), preprocess="standardize")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)  # three steps are no training
        ff.Trainer(model, data, config=ff.TrainConfig(steps=3), progress=False).fit()
    return model


def trained_on(case: Case) -> Any:
    """What a model that the case is then given was trained on: the case's own numbers, or X by name."""
    if case.late:
        return frame()
    return X if case.means is None or len(case.means) < 2 else case.means


def _fitted(case: Case) -> Any:
    return estimator().fit(trained_on(case))


def _model(case: Case) -> ff.Autoencoder:
    return train(trained_on(case))


def _z(result: Any) -> npt.NDArray[np.float64]:
    return np.asarray(result.toarray() if hasattr(result, "toarray") else result, dtype=np.float64)


def as_file(data: Any, folder: Path) -> Path | None:
    """The input as the file that a user would have of it; None: there is none."""
    if isinstance(data, np.ndarray) and not isinstance(data, np.ma.MaskedArray):
        np.save(folder / "x.npy", data, allow_pickle=True)
        return folder / "x.npy"
    if isinstance(data, pl.DataFrame):
        data.write_parquet(folder / "x.parquet")
        return folder / "x.parquet"
    if isinstance(data, pd.DataFrame):
        named = data.set_axis(list(map(str, data.columns)), axis=1)
        named.to_csv(folder / "x.csv", index=False)
        return folder / "x.csv"
    if sp.issparse(data):
        sp.save_npz(folder / "x.npz", data)
        return folder / "x.npz"
    return None


def _command(verb: str, case: Case, data: Any) -> npt.NDArray[np.float64]:
    """The command line, in this process; what it says when it fails becomes a ValueError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = as_file(data, folder)
        if file is None:
            raise NoSuchFileForm
        if verb == "train":
            settings = [f"--set={s}" for s in ("model.n_latents=8", "model.activation.k=2", "train.steps=3")]
            _fewfire("train", file, "--out", folder / "model", *settings)
            file = folder / "plain.npy"
            np.save(file, case.means if case.means is not None else X)
        else:
            ff.save(_model(case), folder / "model")
        _fewfire("encode", folder / "model", file, "--out", folder / "z.npy")
        return np.load(folder / "z.npy").astype(np.float64)


class NoSuchFileForm(Exception):
    """A list, a tensor, a masked array: nothing that a file could hold."""


def _fewfire(*arguments: Any) -> None:
    said, before = io.StringIO(), (sys.argv, warnings.showwarning)
    sys.argv = ["fewfire", *map(str, arguments)]
    try:
        with redirect_stderr(said):
            cli.main()
    except SystemExit as end:
        if end.code:
            last = said.getvalue().strip().splitlines()[-1]
            folder = f"{Path(arguments[1]).parent}{os.sep}"
            raise ValueError(last.removeprefix("fewfire: ").replace(folder, "")) from None
    finally:
        sys.argv, warnings.showwarning = before


def _numbers(found: dict[str, float]) -> npt.NDArray[np.float64]:
    """Without their limits, which are infinite where rows are too few or too alike to tell."""
    return np.array([value for name, value in found.items() if not name.endswith(("_low", "_high"))])


ENTRIES: dict[str, Callable[[Case, Any], npt.NDArray[np.float64]]] = {
    "Trainer.fit": lambda case, data: _z(train(data).encode(case.means if case.means is not None else X)),
    "encode": lambda case, data: _z(_model(case).encode(data)),
    "encode_sparse": lambda case, data: _z(_model(case).decode(_model(case).encode_sparse(data))),
    "reconstruct": lambda case, data: _z(_model(case).reconstruct(data)),
    "evaluate": lambda case, data: _numbers(ff.evaluate(_model(case), data)),
    "estimator.fit": lambda case, data: _z(estimator().fit(data).transform(data)),
    "estimator.partial_fit": lambda case, data: _z(estimator().partial_fit(data).transform(data)),
    "estimator.transform": lambda case, data: _z(_fitted(case).transform(data)),
    "estimator.reconstruct": lambda case, data: _z(_fitted(case).reconstruct(data)),
    "estimator.score": lambda case, data: np.array([_fitted(case).score(data)]),
    "fewfire train": lambda case, data: _command("train", case, data),
    "fewfire encode": lambda case, data: _command("encode", case, data),
}
FITTING = {"Trainer.fit", "estimator.fit", "estimator.partial_fit", "fewfire train"}


def applies(case: Case, entry: str) -> bool:
    """Whether a case can be handed to an entry point at all."""
    if case.late and entry in FITTING:
        return False
    with tempfile.TemporaryDirectory() as folder:
        return not entry.startswith("fewfire") or as_file(case.make(), Path(folder)) is not None


@dataclass(frozen=True)
class Outcome:
    """What an entry point made of a case."""

    value: npt.NDArray[np.float64] | None
    error: Exception | None

    @property
    def message(self) -> str:
        return " ".join(str(self.error).split()) if self.error else ""


def outcome(case: Case, entry: str, data: Any = None) -> Outcome:
    """``data`` None: the case's own."""
    try:
        return Outcome(_quietly(ENTRIES[entry], case, case.make() if data is None else data), None)
    except Exception as error:
        return Outcome(None, error)


def _quietly(work: Callable[..., Any], *arguments: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ff.SparsityWarning)
        warnings.filterwarnings("ignore", "X (does not have valid|has) feature names")  # scikit-learn's own
        return work(*arguments)


def expected(case: Case, entry: str) -> npt.NDArray[np.float64]:
    """What the same numbers give as a plain matrix."""
    assert case.means is not None
    return _quietly(ENTRIES[entry], case, case.means)


# ---------------------------------------------------------------------------------------------- the table

HEAD = """# What becomes of bad input

Every line is an input that some tool takes in silence or fails on without a word, given to every entry point of
fewfire. *Taken* means that the result is the one that the same numbers give as a plain matrix; anything else is
refused in one line, before anything has been changed. `tests/test_bad_inputs.py` checks each of the {cells} cells, and
that this page says what happens; `python tests/bad_inputs.py > docs/bad-input.md` writes it.

*Fit* is `Trainer.fit`, `SparseAutoencoder.fit` and `partial_fit`, and `fewfire train` where a file can hold the input
(.npy, .npz, .csv or .parquet); *use* is `encode`, `encode_sparse`, `reconstruct`, `evaluate`, the estimator's
`transform`, `reconstruct` and `score`, and `fewfire encode`. Where entry points differ, each is named. The
sentence is that of `evaluate`, or of the first that refuses; scikit-learn's checks word some of the estimator's.

| input | fit | use | what it says |
|---|---|---|---|
"""


def table() -> str:
    lines = []
    for case in CASES:
        found = {entry: outcome(case, entry) for entry in ENTRIES if applies(case, entry)}
        fit = _cell({e: o for e, o in found.items() if e in FITTING})
        use = _cell({e: o for e, o in found.items() if e not in FITTING})
        order = ["evaluate", *found]
        says = next((found[e].message for e in order if found[e].error is not None), "")
        lines.append(f"| {case.name} | {fit} | {use} | {_quoted(says)} |")
    cells = sum(applies(case, entry) for case in CASES for entry in ENTRIES)
    return HEAD.format(cells=cells) + "\n".join(lines) + "\n"


def _cell(outcomes: dict[str, Outcome]) -> str:
    taken = [entry for entry, o in outcomes.items() if o.error is None]
    if not outcomes:
        return ""
    if len(taken) in (0, len(outcomes)):
        return "taken" if taken else "refused"
    return "taken by " + ", ".join(f"`{entry}`" for entry in taken) + "; else refused"


def _quoted(message: str) -> str:
    return message.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
        page = table()
    sys.stdout.write(page)
