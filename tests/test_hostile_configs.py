"""Configurations under fire: what stands there is what is understood, or one sentence says where it is not.

And run folders from strangers, whose configuration may name any file.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import fewfire as ff
from fewfire import runs
from fewfire.disk import ModelFileError, load_tensors, save_tensors
from fewfire.runs import RunConfig, load_config, open_run, train
from fewfire.runs.plain_yaml import MAX_CHARACTERS, dump_yaml, parse_yaml

SECOND = 1.0
"""the most that reading or refusing a configuration may take"""


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The sentence with which a call is refused."""
    start = time.process_time()
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert time.process_time() - start < SECOND
    message = str(caught.value)
    assert type(caught.value) is ValueError, "pydantic's own error is a page long"
    assert message.isprintable()
    assert len(message) < 400
    return message


# ------------------------------------------------------------------------------------------------ what words mean


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((word, word) for word in ["yes", "no", "Yes", "NO", "on", "off", "y", "n", "N", "tRue", "nope", "="]),
        *((word, word) for word in ["12:30:00", "1:30", "-190:20:30", "2024-01-31", "2001-12-14t21:59:43.10-05:00"]),
        *(
            (word, word)
            for word in ["0777", "007", "00", "0o17", "0x1F", "0b101", "1_000", "1_0.5", "1.2.3", "1e", "e5"]
        ),
        *(
            (word, word)
            for word in [".", "+", "nan", "inf", "Infinity", "none", "None", "nil", "1 000", "3,5", "\u0663", "1\u0663"]
        ),
        *((word, True) for word in ["true", "True", "TRUE"]),
        *((word, False) for word in ["false", "False", "FALSE"]),
        *((word, None) for word in ["", "~", "null", "Null", "NULL"]),
        *((word, int(word)) for word in ["0", "1", "-1", "+12", "-0", "9007199254740992"]),
        *((word, float(word)) for word in ["1e-3", "1E5", "1.", ".5", "-1.5e+10", "+1e3", "0.1", "0e0", "1.e-3"]),
        *((f'"{word}"', word) for word in ["true", "1", "null", "1e5", "~"]),
        *((f"!!str {word}", word) for word in ["true", "1", "null"]),
        ("'it''s'", "it's"),
    ],
)
def test_words_mean_what_they_look_like(text: str, value: Any) -> None:
    """YAML 1.1 reads `no` as false, 12:30:00 as 45000, 0777 as 511 and 1e-3 as text."""
    found = parse_yaml(f"k: {text}")["k"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "key", ["yes", "no", "on", "12:30:00", "2024-01-31", "007", "1_000", "kl.weight", "a b", "x" * 900]
)
def test_keys_are_text_too(key: str) -> None:
    assert parse_yaml(f"{key}: 1") == {key: 1}


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_text_comes_back_as_it_was(text: str) -> None:
    """In our reading of YAML, and in anybody's."""
    written = dump_yaml({"k": text, "list": [text, text]})
    assert parse_yaml(written) == {"k": text, "list": [text, text]}
    if not any(0xD800 <= ord(c) < 0xE000 for c in text):
        assert yaml.safe_load(written) == parse_yaml(written)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
        max_leaves=12,
    )
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_settings_come_back_as_they_were(value: Any) -> None:
    if "<<" in str(value):
        return
    written = dump_yaml({"k": value})
    assert parse_yaml(written) == {"k": value}
    assert str(parse_yaml(written)) == str({"k": value}), "1 is not 1.0, and not true"


@pytest.mark.parametrize(
    "text", ["1e5", "no", "007", "12:30:00", "~", "a: b", "#", "- x", "é", "\u202e", "x" * 500, " x "]
)
def test_a_path_that_looks_like_something_else_stays_a_path(tmp_path: Path, text: str) -> None:
    config = RunConfig.model_validate({"data": {"path": text, "options": {"columns": [text, "no"]}}})
    (tmp_path / "c.yaml").write_text(dump_yaml(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(tmp_path / "c.yaml") == config


# ------------------------------------------------------------------------------------------------ hostile YAML

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 10,000 values"),
        ("x: [&a y, " + "*a, " * 101 + "]", "line 1, column 411: more than 100 aliases"),
        ("a: &a [*a]", "nested deeper than 32 levels"),
        ("a: &a {b: *a}", "nested deeper than 32 levels"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the key 'a' a second time"),
        ("train: {steps: 1, steps: 2}", "line 1, column 19: the key 'steps' a second time"),
        ("a: 1\n'a': 2", "line 2, column 1: the key 'a' a second time"),
        ("b: &b {x: 1}\na:\n  <<: *b", "line 3, column 3: merge keys (<<) are not supported"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag '!!python/object/apply:os.system'"),
        ("a: !!python/name:os.system", "tags are not supported"),
        ("!!python/object/new:type {}", "tags are not supported"),
        ("a: !<tag:yaml.org,2002:python/none> x", "tags are not supported"),
        ("a: !mine {b: 1}", "the tag '!mine'"),
        ("a: !!binary aGVsbG8=", "the tag '!!binary'"),
        ("a: !!timestamp 2001-12-14", "the tag '!!timestamp'"),
        ("a: !!set {x}", "the tag '!!set'"),
        ("a: !!omap [x: 1]", "the tag '!!omap'"),
        ("a: !!int yes", "expected int, got 'yes'"),
        ("a: !!bool yes", "expected bool, got 'yes'"),
        ("1: x", "a key that is not text; put it in quotes"),
        ("~: x", "a key that is not text"),
        ("? [a]\n: x", "a key that is not text"),
        ("--- a\n--- b", "line 2, column 1: expected a single document in the stream, but found another"),
        ("%YAML 2.0\n---\na", "incompatible YAML document"),
        ("a:\n\t- b", "line 2, column 1: while scanning for the next token, found character '\\t'"),
        ("a: 'b\nc: d", "line 2, column 5: while scanning a quoted scalar, found unexpected end of stream"),
        ("a: [1, 2", "expected ',' or ']'"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\nb: \0", "line 2: a character that text does not have, '\\x00'"),
        ("a: \x1b[31m", "line 1: a character that text does not have, '\\x1b'"),
        ("a: \ud800", "'\\ud800'"),
        ("a: " + "9" * 5000, "expected int, got '9999"),
        ("[" * 60_000, "line 1, column 33: nested deeper than 32 levels"),
        ("{" * 60_000, "nested deeper than 32 levels"),
        ("- " * 60_000, "nested deeper than 32 levels"),
        ("? " * 60_000, "nested deeper than 32 levels"),
        ("[a: " * 30_000, "nested deeper than 32 levels"),
        ("[" + "a," * 60_000 + "]", "more than 10,000 values"),
        ("- a\n" * 30_000, "more than 10,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(12_000)), "line 5000, column 8: more than 10,000 values"),
        ("x" * (MAX_CHARACTERS + 1), "expected at most 131,072 characters, got 131,073"),
        ("!" + "t" * 100_000 + " a", "the tag '!ttt"),
        ("k" * 2000 + ": 1", "mapping values are not allowed here"),
        ('"' + "\\u0041" * 20_000, "found unexpected end of stream"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_hostile_yaml(text: str, words: str) -> None:
    assert words in refusal(parse_yaml, text)


@pytest.mark.parametrize(
    "text",
    [
        "x" * MAX_CHARACTERS,
        "#" * MAX_CHARACTERS,
        "\n" * MAX_CHARACTERS,
        "a\n" * (MAX_CHARACTERS // 2),
        '"' + "a " * (MAX_CHARACTERS // 2 - 1) + '"',
        "a: >\n" + " x\n" * 40_000,
        "? " + "k" * 100_000 + "\n: 1",
    ],
    ids=["word", "comment", "lines", "words", "quoted", "folded", "key"],
)
def test_the_longest_texts_are_read_in_time(text: str) -> None:
    start = time.process_time()
    parse_yaml(text)
    assert time.process_time() - start < SECOND


def test_a_few_aliases_work() -> None:
    assert parse_yaml("a: &a {x: [1]}\nb: *a\nc: [*a, *a]") == {"a": {"x": [1]}, "b": {"x": [1]}, "c": [{"x": [1]}] * 2}


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbftrain: {steps: 7}",
        b"train:\r\n  steps: 7\r\n",
        b"train:\r  steps: 7\r",
        b"--- # a comment\ntrain: {steps: 7}\n...\n",
        "train: {steps: 7} # é 名 \U0001f600\n".encode(),
        b"train: &t {steps: 7}\n",
        b"\n\n\n  \ntrain: {'steps': 7}",
        b"{train: {steps: 7,},}",
    ],
)
def test_files_as_editors_leave_them(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    assert load_config(tmp_path / "c.yaml").train.steps == 7


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("train: {steps: 7}".encode("utf-16"), "line 1 is not UTF-8; save it as UTF-8"),
        (b"train:\n  # caf\xe9\n  steps: 7", "line 2 is not UTF-8"),
        (b"\x80\x04\x95.", "line 1 is not UTF-8"),
        (b"\x1f\x8b\x08" + bytes(50), "is not UTF-8"),
        (b"x" * (MAX_CHARACTERS + 1), "expected a config of at most 128 KiB"),
        (b"train: {steps: 1, steps: 2}", "c.yaml is not YAML: line 1, column 19: the key 'steps' a second time"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "c.yaml").write_bytes(data)
    message = refusal(load_config, tmp_path / "c.yaml")
    assert words in message
    assert "c.yaml" in message


@pytest.fixture
def alarm() -> Iterator[None]:
    """Opening a pipe that nobody writes to waits for ever: fail instead."""

    def ring(*_: object) -> None:
        raise TimeoutError("waited for a pipe")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "c.yaml")
    for name in ("c.yaml", "/dev/zero", "."):
        with pytest.raises(FileNotFoundError, match="no config file"):
            load_config(tmp_path / name)


# ------------------------------------------------------------------------------------------------ mutants

GOOD = """\
data:
  path: rows.npy
  preprocess: {name: minmax, low: 0.0, high: 1.0}
model:
  n_latents: 64
  activation: {name: topk, k: 8}
  network: {name: linear, tied: false}
objective: [mse, {name: auxk, weight: 3e-2}]
corruption: {name: masking, level: 0.25}
train:
  steps: 500   # comment
  betas: [0.9, 0.999]
  device: "cpu"
  schedules: {activation.k: [[0, 16], [0.5, 8]]}
"""
SPLINTERS = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ": ",
    ",",
    "- ",
    "\n",
    "\n  ",
    "\t",
    '"',
    "'",
    "#",
    "&a ",
    "*a",
    "!!",
    "!x ",
    "|",
    ">",
    "? ",
]
SPLINTERS += [
    "<<: ",
    "%",
    "@",
    "`",
    "---\n",
    "~",
    "null",
    "no",
    "1e999",
    ".nan",
    "-1",
    "9" * 30,
    "0777",
    "\0",
    "\x1b",
    "\ufeff",
    "é",
]


def mutant(rng: random.Random) -> bytes:
    """The good configuration, hurt in one to three ways."""
    data = GOOD
    for _ in range(rng.choice([1, 1, 2, 3])):
        i, j = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(7):
            case 0:
                data = data[:i]
            case 1:
                data = data[:i] + rng.choice(SPLINTERS) + data[i:]
            case 2:
                data = data[:i] + data[min(j, i + rng.randrange(1, 12)) :]
            case 3:
                data = data[:i] + data[i:j] * 2 + data[j:]
            case 4:
                data = data[:i] + chr(rng.choice([rng.randrange(256), rng.randrange(0x11000)])) + data[i + 1 :]
            case 5:
                lines = data.split("\n")
                rng.shuffle(lines)
                data = "\n".join(lines)
            case _:
                words = data.split(" ")
                words[rng.randrange(len(words))] = rng.choice(SPLINTERS)
                data = " ".join(words)
    new = bytearray(data.encode("utf-8", "surrogatepass"))
    if rng.random() < 0.2 and new:
        new[rng.randrange(len(new))] ^= 1 << rng.randrange(8)
    return bytes(new)


def hurt(folder: Path, n: int, seed: int) -> Counter[str]:
    rng, outcomes, path = random.Random(seed), Counter[str](), folder / "c.yaml"
    path.write_text(GOOD)
    good = load_config(path)
    for _ in range(n):
        path.unlink()  # some file systems force an overwritten file to the disk
        path.write_bytes(mutant(rng))
        start = time.process_time()
        try:
            found = load_config(path)
        except ValueError as error:
            outcomes["refused"] += 1
            assert type(error) is ValueError
            assert str(error).isprintable(), repr(str(error))
            assert len(str(error)) < 400 + len(str(path)), str(error)
        else:
            outcomes["same" if found == good else "another"] += 1
            assert parse_yaml(dump_yaml(found.model_dump(mode="json"))) == found.model_dump(mode="json")
        assert time.process_time() - start < SECOND
    return outcomes


def test_four_thousand_mutants_of_a_good_configuration(tmp_path: Path) -> None:
    outcomes = hurt(tmp_path, 4_000, seed=0)
    assert outcomes["refused"] > 3_000
    assert outcomes["another"] > 100, "other settings are as good"


@pytest.mark.slow
def test_twenty_thousand_mutants_of_a_good_configuration(tmp_path: Path) -> None:
    assert hurt(tmp_path, 20_000, seed=1)["refused"] > 15_000


# ------------------------------------------------------------------------------------------------ slips


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.step=5", "no setting 'train.step'; `fewfire config` prints what there is; did you mean 'steps'?"),
        (
            "train.bacth_size=3",
            "no setting 'train.bacth_size'; `fewfire config` prints what there is; did you mean 'batch_size'?",
        ),
        ("model.n_latent=8", "did you mean 'n_latents'?"),
        ("model.activaton=relu", "did you mean 'activation'?"),
        ("modell.n_latents=8", "no setting 'modell'; `fewfire config` prints what there is; did you mean 'model'?"),
        ("Train.steps=8", "did you mean 'train'?"),
        ("data.pat=x", "did you mean 'path'?"),
        ("objectives=[mse]", "did you mean 'objective'?"),
        ("train.learningrate=1", "did you mean 'learning_rate'?"),
        ("train.xyzzy=1", "no setting 'train.xyzzy'; `fewfire config` prints what there is"),
        ("train.steps=true", "train.steps: expected no switch; got true"),
        ("train.learning_rate=false", "train.learning_rate: expected no switch; got false"),
        ("train.steps=no", "train.steps: Input should be a valid integer"),
        ("train.steps=12:30", "train.steps: Input should be a valid integer"),
        ("train.learning_rate=.nan", "train.learning_rate: expected a finite number; got nan"),
        ("objective=[{name: l1, weight: .inf}]", "objective.0.weight: expected a finite number; got inf"),
        ("train.learning_rate=1e999", "train.learning_rate: expected a finite number; got inf"),
        ("train.seed=9007199254740993", "train.seed: expected a whole number of at most 2**53; got 9007199254740993"),
        ("data.options={n: 1" + "0" * 400 + "}", "data.options.n: expected a whole number of at most 2**53; got 1000"),
        ("train.steps={a: &a [*a]}", "the value is not YAML"),
        ("a" * 5000 + "=1", "no setting 'aaa"),
        ("train." + "a" * 5000 + "=1", "no setting 'train.aaa"),
        ("train.device=" + "x" * 5000 + "\x07", "the value is not YAML: line 1: a character that text does not have"),
        ("a." * 5000 + "a=1", "expected --set key=value"),
        ("objective.99999999999999999999=1", "expected"),
        ("train.steps=" + "x" * 5000, "train.steps: Input should be a valid integer"),
    ],
    ids=lambda value: value[:30],
)
def test_slips(tmp_path: Path, setting: str, words: str) -> None:
    """On the command line, and in a file, which is then named."""
    assert words in refusal(
        load_config, None, [setting] if "objective.9" not in setting else ["objective=[mse]", setting]
    )
    *sections, name = setting.partition("=")[0].split(".")
    if not 1 <= len(sections) <= 1 or len(setting) > 1000 or sections == ["objective"]:
        return
    (tmp_path / "c.yaml").write_text(f"{sections[0]}:\n  {name}: {setting.partition('=')[2]}\n")
    message = refusal(load_config, tmp_path / "c.yaml")
    assert str(tmp_path / "c.yaml") in message
    assert "the value" in words or words in message


def test_numbers_are_checked_however_they_come() -> None:
    """Or a run would write a configuration that it cannot read."""
    with pytest.raises(ValueError, match=r"train\.seed: expected a whole number of at most 2\*\*53"):
        RunConfig(train=ff.TrainConfig(seed=2**60))
    with pytest.raises(ValueError, match=r"model\.activation\.k: expected a finite number; got nan"):
        RunConfig(model=runs.ModelConfig(activation={"name": "topk", "k": float("nan")}))
    assert RunConfig(train=ff.TrainConfig(seed=2**53)).train.seed == 2**53


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: ff.Autoencoder(3, 4, "topkk"), ValueError, "unknown activation 'topkk'; .*; did you mean 'topk'?"),
        (lambda: ff.Autoencoder(3, 4, "TopK"), ValueError, "did you mean 'topk'?"),
        (lambda: ff.Autoencoder(3, 4, "x" * 9999), ValueError, "unknown activation 'xxx"),
        (lambda: ff.Autoencoder(3, 4, {"name": ["topk"]}), ValueError, r"unknown activation \['topk'\]"),
        (
            lambda: ff.Autoencoder(3, 4, {"name": "topk", "kk": 1}),
            ValueError,
            "has no setting 'kk'; it takes: k.*; did you mean 'k'?",
        ),
        (lambda: ff.Autoencoder(3, 4, {"name": "topk", "y" * 9999: 1}), ValueError, "has no setting 'yyy"),
        (lambda: ff.Autoencoder(3, 4, network={"name": "linear", "tide": True}), ValueError, "did you mean 'tied'?"),
        (lambda: ff.Autoencoder(3, 4, preprocess="standardise"), ValueError, "did you mean 'standardize'?"),
        (lambda: ff.Term.from_config("msee"), ValueError, "did you mean 'mse'?"),
        (lambda: ff.Corruption.from_config("mask"), ValueError, "did you mean 'masking'?"),
        (
            lambda: ff.Autoencoder(3, 4, network={"name": "linear", "tied": "no"}),
            TypeError,
            r"expected tied to be bool \| None; got 'no'",
        ),
        (
            lambda: ff.Autoencoder(3, 4, network={"name": "linear", "tied": 0}),
            TypeError,
            r"expected tied to be bool \| None; got 0",
        ),
        (
            lambda: ff.Autoencoder(3, 4, network={"name": "linear", "unit_norm": "no"}),
            TypeError,
            r"unit_norm to be bool \| None; got 'no'",
        ),
        (lambda: ff.Autoencoder(3, 4, {"name": "topk", "k": "3"}), TypeError, r"expected k to be int \| None; got '3'"),
        (lambda: ff.Autoencoder(3, 4, {"name": "topk", "k": 1.5}), TypeError, r"expected k to be int \| None; got 1.5"),
        (
            lambda: ff.Autoencoder(3, 4, {"name": "topk", "k": True}),
            TypeError,
            r"expected k to be int \| None; got True",
        ),
        (
            lambda: ff.Term.from_config({"name": "l1", "weight": "1e-3"}),
            TypeError,
            "expected weight to be float; got '1e-3'",
        ),
        (
            lambda: ff.Term.from_config({"name": "l1", "weight": None}),
            TypeError,
            "expected weight to be float; got None",
        ),
        (lambda: ff.Term.from_config({"name": "l1", "weight": "z" * 9999}), TypeError, "got 'zzz"),
        (
            lambda: ff.Preprocess.from_config({"name": "minmax", "per_column": "no"}),
            TypeError,
            "per_column to be bool; got 'no'",
        ),
        (lambda: ff.Preprocess.from_config(3), ValueError, "expected preprocess to be its name"),
    ],
)
def test_slips_in_members(build: Callable[[], object], error: type[Exception], words: str) -> None:
    """A text where a switch belongs would be true, whatever it says."""
    with pytest.raises(error, match=words.replace("?", r"\?")) as caught:
        build()
    assert len(str(caught.value)) < 400


def test_whole_numbers_may_be_written_as_floats() -> None:
    """As a schedule leaves them, and numpy's as well."""
    assert ff.Autoencoder(3, 8, {"name": "topk", "k": 2.0}).encode(np.ones((1, 3))).count_nonzero() <= 2
    assert ff.Term.from_config({"name": "l1", "weight": np.float32(2)}).weight == 2
    assert ff.Autoencoder(3, 8, {"name": "topk", "k": np.int64(2)}).config()["activation"]["k"] == 2


# ------------------------------------------------------------------------------------------------ whose files


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder as a stranger may hand it over, and a file of ours beside it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("rows.npy", rng.normal(size=(60, 5)))
    np.save("secret.npy", rng.normal(size=(60, 5)))
    np.savetxt("secret.csv", rng.normal(size=(60, 5)), delimiter=",")
    config = RunConfig.model_validate(
        {"data": {"path": "rows.npy"}, "model": {"n_latents": 4, "activation": "sigmoid"}, "objective": ["mse"]}
        | {"train": {"steps": 2, "batch_size": 30, "validation_fraction": 0.2}}
    )
    train(config, tmp_path / "run", progress=False)
    return tmp_path / "run"


def name_data(run: Path, path: str, **options: Any) -> None:
    raw = parse_yaml((run / "config.yaml").read_text())
    raw["data"].update(path=path, **options)
    (run / "config.yaml").write_text(dump_yaml(raw))


def change_header(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    file = run / "model" / "model.safetensors"
    tensors, metadata = load_tensors(file)
    change(metadata)
    save_tensors(file, tensors, metadata)
    (run / "model" / "config.json").unlink()


def test_a_run_reads_its_own_data_without_being_told(run: Path) -> None:
    assert open_run(run).source().n_rows == 60


OTHERS = [
    "secret.npy",
    "../{here}/secret.npy",
    "{tmp}/secret.npy",
    "./run/../secret.npy",
    "{tmp}/run/../secret.npy",
    "secret.csv",
]
OTHERS += ["digits", "link.npy", "run/link.npy"]
NOTHING = [
    "no.npy",
    "/nonexistent/x.npy",
    "~/x.npy",
    "$HOME/x.npy",
    "a\0b",
    "rows.npy\0.csv",
    "",
    "x" * 5000,
    "..\\secret.npy",
]
KINDLESS = [".", "..", "/", "/dev/zero", "/dev/stdin", "/etc/passwd", "pipe.npy", "run", "run/model", "{tmp}"]
ADDRESSES = [
    "s3://bucket/x.npy",
    "file:///etc/passwd",
    "file:/etc/passwd",
    "http://localhost/x.csv",
    "https://e.org/x.parquet",
]
ADDRESSES += [
    "gs://b/x.npy",
    "ftp://h/x.npy",
    "hdfs://h/x",
    "abfs://c@a/x",
    "FILE:///etc/passwd",
    "memory://x",
    "git+ssh://h/x",
]


@pytest.mark.parametrize("path", OTHERS + NOTHING + KINDLESS + ADDRESSES)
@pytest.mark.usefixtures("alarm")
def test_a_strangers_run_cannot_make_us_read_our_files(run: Path, tmp_path: Path, path: str) -> None:
    """Its configuration may name any file. What was not trained on is used only when the user names it."""
    (tmp_path / "link.npy").symlink_to("secret.npy")
    (run / "link.npy").symlink_to("../secret.npy")
    os.mkfifo(tmp_path / "pipe.npy")
    path = path.format(tmp=tmp_path, here=tmp_path.name)
    name_data(run, path)
    opened = open_run(run)
    with pytest.raises((ValueError, OSError)) as caught:
        opened.source()
    if path in ADDRESSES:
        assert f"{path} is an address, and nothing is fetched; download it" in str(caught.value)
    if path.startswith("secret"):
        assert f"{path} is not, or no longer, what {run} was trained on; name the data to use them" in str(caught.value)


def test_data_that_the_user_names_are_used(run: Path) -> None:
    """The same path again: with a warning. Any other: it is the user's wish."""
    name_data(run, "secret.npy")
    opened = open_run(run)
    with pytest.warns(UserWarning, match=r"secret\.npy is not, or no longer, what .* was trained on"):
        assert opened.source("secret.npy").n_rows == 60
    assert opened.source("rows.npy").n_rows == 60
    with pytest.raises(ValueError, match="is an address, and nothing is fetched"):
        opened.source("s3://bucket/x.npy")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["provenance"].pop("data_fingerprint"),
        lambda m: m["provenance"].update(data_fingerprint=None),
        lambda m: m["provenance"].update(data_fingerprint=""),
        lambda m: m["provenance"].update(data_fingerprint=["x"]),
        lambda m: m.update(provenance={}),
    ],
)
def test_a_run_that_does_not_say_which_data_were_its_own_has_none(run: Path, change: Callable[..., object]) -> None:
    change_header(run, change)
    with pytest.raises(ValueError, match="name the data to use them all the same"):
        open_run(run).source()


def test_data_that_have_changed_are_not_used_unseen(run: Path) -> None:
    rows = np.load("rows.npy")
    rows[3, 2] += 1
    np.save("rows.npy", rows)
    with pytest.raises(ValueError, match="no longer, what"):
        open_run(run).source()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {path: rows.npy, path: secret.npy}", "a second time"),
        ("include: ../other.yaml", "no setting 'include'"),
        ("data: !include /etc/passwd", "tags are not supported"),
        ("data: {path: [rows.npy, secret.npy]}", "data.path: Input should be a valid string"),
        ("data: {path: {file: x}}", "data.path: Input should be a valid string"),
        ("model: {path: /etc/passwd}", "no setting 'model.path'; `fewfire config` prints what there is"),
        ("[" * 5000, "nested deeper"),
        ("", None),
    ],
)
def test_hostile_configurations_in_a_run_folder(run: Path, text: str, words: str | None) -> None:
    (run / "config.yaml").write_text(text)
    if words is None:
        with pytest.raises(ValueError, match="does not say what it was trained on"):
            open_run(run).source()
    else:
        assert words in refusal(open_run, run)


def test_links_in_a_model_folder(run: Path, tmp_path: Path) -> None:
    """A linked model is read, as the caches of hubs have them. A linked copy is replaced, never what it points to."""
    mine = tmp_path / "precious.txt"
    mine.write_text("mine")
    model = run / "model"
    (model / "model.safetensors").rename(tmp_path / "blob")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    (model / "config.json").unlink()
    (model / "config.json").symlink_to(mine)
    with pytest.warns(UserWarning, match="did not agree with model.safetensors"):
        assert ff.load(model).n_latents == 4
    assert mine.read_text() == "mine"
    assert not (model / "config.json").is_symlink()
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("nowhere")
    with pytest.raises(FileNotFoundError, match="there is no model"):
        ff.load(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises((ModelFileError, FileNotFoundError)):
        ff.load(model)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(mine)
    with pytest.raises(ModelFileError, match="too short for a safetensors file"):
        ff.load(model)


@pytest.mark.usefixtures("alarm")
def test_pipes_in_a_model_folder_are_not_waited_for(run: Path) -> None:
    (run / "model" / "config.json").unlink()
    os.mkfifo(run / "model" / "config.json")
    assert ff.load(run).n_latents == 4
    (run / "model" / "model.safetensors").unlink()
    os.mkfifo(run / "model" / "model.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no model"):
        ff.load(run)


def test_names_of_files_are_quoted_when_they_would_be_obeyed(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31mred\nline").touch()
    with pytest.raises(FileNotFoundError) as caught:
        ff.load(tmp_path)
    assert r"found a\x1b[31mred line" in str(caught.value)
    assert str(caught.value).isprintable()
