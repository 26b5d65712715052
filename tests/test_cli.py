"""The command line as a person uses it: every verb, and every mistake answered in one line."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

import fewfire as ff
from fewfire import cli
from fewfire.disk import locked
from fewfire.evaluation import LIMITED

FAST = ["--set", "train.steps=20", "--set", "train.batch_size=32"]


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """``call("info", path)`` -> (exit code, standard output, standard error), in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back afterwards

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewfire", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit, warnings.catch_warnings():
            warnings.simplefilter("default")
            cli.main()
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return run


@pytest.fixture
def fails(call):
    """The line in which a call fails, checked to be one line, short, and to say no Python."""

    def run(code, *arguments):
        got, out, err = call(*arguments)
        assert got == code, err
        assert out == ""
        assert err.endswith("\n")
        assert err.count("\n") == 1, err
        assert err.startswith("fewfire: ")
        assert len(err) < 400
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def data(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    np.save(tmp_path / "narrow.npy", rows[:, :5])
    return "rows.npy"


@pytest.fixture
def run(call, data):
    code, _, err = call("train", data, "--out", "run", *FAST, "--set", "model.activation.k=3")
    assert code == 0, err
    return "run"


# ------------------------------------------------------------------------------------------- the verbs


def test_version_help_and_nothing(call):
    assert call("--version") == (0, f"{ff.__version__}\n", "")
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for verb in ("train", "evaluate", "encode", "reconstruct", "info", "report", "demo", "config"):
        assert verb in out
    assert call() == call("--debug") == (0, out, "")
    assert call("train", "--help")[0] == 0


def test_config_prints_the_schema(call):
    code, out, _ = call("config")
    assert code == 0
    assert set(json.loads(out)["properties"]) == {"data", "model", "objective", "corruption", "train"}


def test_train_says_what_came_out_and_what_is_next(call, data, tmp_path):
    code, out, err = call("train", data, "--out", "new/run", *FAST)
    assert (code, out) == (0, "")
    first, second = err.splitlines()
    assert first.startswith("20 steps in ")
    assert "of variance explained" in first
    assert second == "new/run holds the model. Next: fewfire report new/run"
    assert sorted(p.name for p in (tmp_path / "new" / "run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "model",
    ]


def test_a_penalty_that_did_nothing_is_said_in_a_line(call, data):
    code, _, err = call(
        "train", data, "--out", "run", *FAST, "--set", "model.activation=sigmoid", "--set", "objective=[mse, kl]"
    )
    assert code == 0
    assert [line for line in err.splitlines() if line.startswith("warning: the KL penalty is met, but the model has")]


def test_resume_needs_nothing_but_the_name(call, data, run, tmp_path):
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    log = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    config = (tmp_path / "run" / "config.yaml").read_bytes()
    code, _, err = call("train", data, "--out", run, "--resume")
    assert code == 0, err
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == log
    assert (tmp_path / "run" / "config.yaml").read_bytes() == config


def test_resume_goes_on_where_a_killed_run_stood(call, data, run, tmp_path, monkeypatch):
    """The saved settings are read again: without them this would be another run of 3000 steps."""
    steps = []
    inner = ff.Trainer._step

    def step(trainer, batch):
        if not steps and trainer.state.step == 15:
            steps.append("killed")
            raise OSError("pulled the plug")
        if steps:
            steps.append(trainer.state.step)
        return inner(trainer, batch)

    monkeypatch.setattr(ff.Trainer, "_step", step)
    settings = [*FAST, "--set", "model.activation.k=3", "--set", "train.checkpoint_every=4"]
    assert call("train", data, "--out", "parts", *settings)[0] == 1
    code, _, err = call("train", data, "--out", "parts", "--resume")
    assert code == 0, err
    assert steps[1:] == list(range(12, 20))
    parts, whole = (ff.load(tmp_path / r) for r in ("parts", run))
    assert all((parts.state_dict()[n] == t).all() for n, t in whole.state_dict().items())


def test_resume_without_a_run_starts_one_and_says_so(call, data, tmp_path):
    code, _, err = call("train", data, "--out", "run", "--resume", *FAST)
    assert code == 0
    assert err.splitlines()[0] == "nothing to resume in run: training starts anew"
    assert (tmp_path / "run" / "model").is_dir()
    code, _, err = call("train", data, "--out", "run", "--resume")
    assert code == 0
    assert err.splitlines()[0] == "run was finished already, after 20 steps: nothing is left to train"
    assert "nothing" not in call("train", data, "--out", "other", *FAST)[2]


@pytest.mark.parametrize(
    ("verb", "out"), [("encode", "rows.npy"), ("reconstruct", "./rows.npy"), ("reconstruct", "link.npy")]
)
def test_the_data_are_not_written_over(fails, run, tmp_path, verb, out):
    (tmp_path / "link.npy").symlink_to("rows.npy")
    before = (tmp_path / "rows.npy").read_bytes()
    line = fails(2, verb, run, "rows.npy", "--out", out)
    assert "holds the data themselves, and would be overwritten; give --out another name" in line
    assert (tmp_path / "rows.npy").read_bytes() == before


def named(tmp_path, rows, text=None):
    """rows.csv with a header; in the last column of all rows the text, if there is one."""
    lines = [",".join(map(str, row[:3])) + f",{text or row[3]}" for row in rows.tolist()]
    (tmp_path / "rows.csv").write_text("\n".join(["a,b,c,d", *lines]) + "\n")


def test_of_tables_too(fails, call, rows, tmp_path):
    named(tmp_path, rows)
    assert call("train", "rows.csv", "--out", "of", *FAST)[0] == 0
    before = (tmp_path / "rows.csv").read_bytes()
    assert "would be overwritten" in fails(2, "score", "of", "rows.csv", "--out", "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes() == before


def test_a_column_that_the_model_needs_is_not_to_be_dropped(fails, call, rows, tmp_path):
    named(tmp_path, rows)
    assert call("train", "rows.csv", "--out", "of", *FAST)[0] == 0
    named(tmp_path, rows, "many")
    (tmp_path / "rows.csv").rename(tmp_path / "new.csv")
    line = fails(2, "score", "of", "new.csv", "--out", "scores.csv")
    assert "'d' (text such as 'many')" in line
    assert "are needed: correct the file" in line
    assert "drop" not in line


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("a;b\n1,5;2,5\n3,5;4,25\n", "decimal"),
        ("a,my note\n1,x\n2,y\n", "drop"),
        ("a,it's\n1,x\n2,y\n", "drop"),
        ('a,"say ""hi"" $HOME"\n1,x\n2,y\n', "drop"),
        ("a,null\n1,x\n2,y\n", "drop"),
        ("a,7\n1,x\n2,y\n", "drop"),
    ],
)
def test_a_hint_works_when_pasted(fails, call, tmp_path, content, hint):
    (tmp_path / "t.csv").write_text(content)
    line = fails(2, "train", "t.csv", "--out", "run", *FAST)
    pasted = shlex.split(line[line.index("--set") :])
    assert pasted[1].startswith(f"data.options.{hint}=")
    code, _, err = call("train", "t.csv", "--out", "run", *FAST, *pasted)
    assert code == 0, err


def test_the_hint_for_a_tab_works_when_pasted(fails, call, tmp_path):
    (tmp_path / "t.csv").write_text("a\tb\n1\t2\n3\t4\n")
    line = fails(2, "train", "t.csv", "--out", "run", *FAST, "--set", r"data.options.delimiter=\t")
    pasted = shlex.split(line[line.index("--set") :])
    assert call("train", "t.csv", "--out", "run", *FAST, *pasted)[0] == 0


def test_what_is_not_there_is_said_in_words_of_the_command_line(fails, tmp_path):
    line = fails(2, "train", "gone.csv", "--out", "run")
    assert line.startswith(
        "fewfire: no such file or folder: gone.csv; expected a built-in name (digits, patches, world), a path"
    )
    assert "array" not in line
    assert "Source" not in line
    (tmp_path / "pictures").mkdir()
    assert "the folder pictures is empty" in fails(2, "train", "pictures", "--out", "run")


@pytest.mark.parametrize("word", ["none", "None", "NONE", "null"])
def test_no_preprocess(call, data, word):
    assert call("train", data, "--out", "run", *FAST, "--set", f"data.preprocess={word}")[0] == 0
    assert json.loads(call("info", "run")[1])["architecture"]["preprocess"] is None


def test_config_file(call, data, tmp_path):
    (tmp_path / "c.yaml").write_text("model: {n_latents: 30, activation: relu}\ntrain: {steps: 9, learning_rate: 1e-2}")
    code, _, err = call("train", data, "--out", "run", "--config", "c.yaml", "--set", "train.steps=5")
    assert code == 0, err
    assert err.splitlines()[0].startswith("5 steps in ")
    assert json.loads(call("info", "run")[1])["architecture"]["n_latents"] == 30


def test_evaluate(call, run, data, rows):
    code, out, err = call("evaluate", run)
    assert (code, err) == (0, "")
    table = {line.split()[0]: line.split()[1] for line in out.splitlines()}
    assert table["n_rows"] == "200"
    shown = {line.split()[0]: line for line in out.splitlines()}
    code, out, err = call("evaluate", run, data, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result == json.loads(call("evaluate", run, "--json")[1])
    wanted = "n_rows mse fvu explained_variance l0 dead_fraction mean_activation"
    assert set(wanted.split()) <= set(result)
    assert table["mse"] == f"{result['mse']:.5g}"
    for name in LIMITED:
        assert f"  {result[f'{name}_low']:.5g} .. {result[f'{name}_high']:.5g}  " in shown[name]
    assert " .. " not in shown["dead_fraction"]
    assert result["l0"] == pytest.approx((ff.load(run).encode(rows) != 0).sum().item() / 200)
    assert json.loads(call("evaluate", f"{run}/model", data, "--json")[1]) == result, "a bare model folder"


def test_evaluate_beside_another_run(call, fails, run, data):
    code, _, err = call("train", data, "--out", "other", *FAST, "--set", "train.seed=7")
    assert code == 0, err
    result = json.loads(call("evaluate", run, "--compare", "other", "--json")[1])
    assert result["stability"] == ff.stability(ff.load(run), ff.load("other"))
    code, out, err = call("evaluate", run, "--compare", "other")
    assert (code, err) == (0, "") and "beside other" in out
    shown = {line.split()[0]: line.split()[1] for line in out.splitlines() if line.split()}
    assert shown["mcc"] == f"{result['stability']['mcc']:.5g}" and shown["mse"] == f"{result['mse']:.5g}"
    assert "there is no nothing" in fails(2, "evaluate", run, "--compare", "nothing")


@pytest.mark.parametrize("verb", ["evaluate", "encode", "reconstruct", "report"])
def test_rows_with_nan_are_refused_by_number(fails, run, rows, verb):
    rows = rows.copy()
    rows[150, 3] = np.nan
    np.save("nan.npy", rows)
    out = ["--out", "out.npy"] if verb in ("encode", "reconstruct") else []
    assert "holds NaN, first in row 150, column 3" in fails(2, verb, run, "nan.npy", *out)
    assert not Path("out.npy").exists()
    assert not Path(run, "report.html").exists()


def test_config_prints_every_members_settings(call):
    members = json.loads(call("config")[1])["members"]
    assert members["objective"]["kl"] == {"weight": 3.0, "rho": 0.05, "per_map": False}
    assert members["model.activation"]["topk"].items() >= {"k": None}.items()
    assert members["data.preprocess"]["chain"] == {"steps": "required"}


def test_encode_and_reconstruct(call, run, data, rows):
    model = ff.load(run)
    z = model.encode(rows).numpy()
    for name in ("z.npz", "z.npy", "z.parquet"):
        code, out, err = call("encode", run, data, "--out", name)
        assert (code, out, err) == (0, "", f"{name}: 200 rows of 48 latents\n")
    assert (sp.load_npz("z.npz").toarray() == z).all()
    assert (np.load("z.npy") == z).all()
    assert pq.read_table("z.parquet").num_rows == 200
    code, _, err = call("reconstruct", run, data, "--out", "r.npy")
    assert (code, err) == (0, "r.npy: 200 rows of shape 12\n")
    assert (np.load("r.npy") == model.reconstruct(rows).numpy()).all()


def test_info(call, run):
    code, out, err = call("info", run)
    assert (code, err) == (0, "")
    info = json.loads(out)
    assert info["architecture"]["activation"].items() >= {"name": "topk", "k": 3}.items()
    assert info["provenance"]["data"] == "rows.npy"
    assert call("info", "run/model")[1] == call("info", "run/model/model.safetensors")[1] == out


# --------------------------------------------------------------------------------- mistakes, one line each


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train", "Missing argument 'DATA'; `fewfire train --help` shows how it is called"),
        ("train rows.npy", "Missing option '--out'"),
        ("trian rows.npy --out new", "No such command 'trian'"),
        ("train rows.npy --out new --stpes 5", "No such option: --stpes"),
        ("train rows.npy extra --out new", "unexpected extra argument"),
        ("train rows.npy --out", "--out"),
        ("train rowz.npy --out new", "no such file or folder: rowz.npy"),
        ("train digit --out new", "no such file or folder: digit; expected a built-in name (digits, patches, world)"),
        ("train . --out new", "cannot tell how to read"),
        ("train text.npy --out new", "fewfire: text.npy: it is not a .npy file"),
        ("train flat.npy --out new", "flat.npy: x must be (n, columns)"),
        ("train nan.npy --out new", "holds NaN, first in row 17, column 3"),
        ("train rows.npy --out rows.npy", "rows.npy is a file; expected the name of a folder"),
        ("train rows.npy --out run", "run is not empty; choose another folder, or --resume"),
        ("train rows.npy --out rows.npy/new", "rows.npy"),
        ("train rows.npy --out new --config no.yaml", "no config file no.yaml"),
        ("train rows.npy --out new --config rows.npy", "rows.npy is not YAML"),
        ("train rows.npy --out new --set train.steps", "expected --set key=value"),
        ("train rows.npy --out new --set train.stepz=5", "no setting 'train.stepz'; `fewfire config` prints"),
        ("train rows.npy --out new --set train.steps=few", "train.steps: Input should be a valid integer"),
        ("train rows.npy --out new --set train.steps=[", "--set train.steps=[: the value is not YAML"),
        (
            "train rows.npy --out new --set train.steps=5 --set train.epochs=5",
            "steps or epochs, got both; leave one out",
        ),
        ("train rows.npy --out new --set model.activation=topp", "unknown activation 'topp'; choose from: "),
        ("train rows.npy --out new --set model.activation.kk=3", "activation 'topk' has no setting 'kk'; it takes: k"),
        ("train rows.npy --out new --set model.activation.k=99", "expected at most 48, got 99"),
        ("train rows.npy --out new --set objective=[mze]", "unknown term 'mze'"),
        ("train rows.npy --out new --set objective=[]", "at least one term"),
        ("train rows.npy --out new --set objective=[mse,kl]", "term 'kl' needs logits"),
        ("train rows.npy --out new --set data.preprocess=standardise", "unknown preprocess 'standardise'"),
        ("train rows.npy --out new --set data.kind=cvs", "unknown kind of data 'cvs'"),
        ("train rows.npy --out new --set data.options={size:4}", "size"),
        ("train rows.npy --out new --set corruption.level=0.5", "unknown corruption None"),
        ("train rows.npy --out new --set train.device=gpu", "unknown device 'gpu'"),
        ("train rows.npy --out new --set train.engine=warp", "unknown engine 'warp'"),
        ("train rows.npy --out new --set train.optimizer=lbfgs", "give the network unit_norm: false"),
        ("train rows.npy --out new --set train.schedules={a.b:[[0,1]]}", "a.b"),
        ("train narrow.npy --out run --resume", "cannot resume from run/checkpoints/step-000000020.safetensors"),
        ("train rows.npy --out run --resume --set train.seed=4", "train.seed was 0 and is 4"),
        ("evaluate nothing", "there is no nothing; expected a model folder, a run folder"),
        ("evaluate empty", "there is no model in empty"),
        ("evaluate run narrow.npy", "expected x of shape (rows, 12); got (200, 5)"),
        ("evaluate run no.npy", "no such file or folder: no.npy"),
        ("evaluate run/model", "does not say what it was trained on; name the data"),
        ("encode run rows.npy", "Missing option '--out'"),
        ("encode run rows.npy --out z.csv", "expected an output that ends in .npz, .npy, .parquet; got 'z.csv'"),
        ("encode run rows.npy --out no/z.npy", "no folder no to write z.npy into"),
        ("encode run narrow.npy --out z.npy", "expected x of shape (rows, 12); got (200, 5)"),
        ("reconstruct run rows.npy --out r.npz", "expected an output that ends in .npy, .parquet"),
        ("info", "Missing argument 'PATH'"),
        ("info nothing", "there is no nothing"),
        ("demo faces --no-open", "no demo 'faces'; choose from: patches, digits"),
    ],
)
def test_a_wrong_call_is_answered_in_one_line_with_code_2(fails, run, rows, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npy").write_text("hello")
    np.save(tmp_path / "flat.npy", rows[:, 0])
    rows[17, 3] = np.nan
    np.save(tmp_path / "nan.npy", rows)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert sentence in fails(2, *arguments.split())
    after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert after == before, "a call that failed leaves no trace"
    assert not (tmp_path / "new").exists()


def test_work_that_failed_has_code_1(fails, call, run, rows, tmp_path):
    bad = rows.copy()
    bad[17, 3] = np.nan
    np.save("nan.npy", bad)
    line = fails(
        1, "train", "nan.npy", "--out", "new", *FAST, "--set", "data.preprocess=null", "--set", "train.batch_size=200"
    )
    assert "holds NaN, first in row 17, column 3" in line
    assert "or set on_nonfinite to 'skip'" in line
    assert not (tmp_path / "new").exists()
    assert "rows.npy is not a model" in fails(1, "info", "rows.npy")
    model = tmp_path / "run" / "model" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-3] ^= 1
    model.write_bytes(data)
    for verb in (["evaluate", run], ["encode", run, "rows.npy", "--out", "z.npy"]):
        assert "model.safetensors" in fails(1, *verb)
    model.unlink()
    assert "there is no model in run" in fails(2, "evaluate", run)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folders(fails, data, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    assert "locked" in fails(1, "train", data, "--out", "locked/run", *FAST)


def test_a_run_in_use(fails, data, tmp_path):
    with locked(tmp_path / "run"):
        other = threading.Thread(target=lambda: said.append(fails(1, "train", data, "--out", "run", *FAST)))
        said = []
        other.start()
        other.join()
    assert re.match(rf"fewfire: run is in use by process {os.getpid()} on .* since .*; wait for it", said[0])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            MemoryError("Unable to allocate 7.4 TiB"),
            "out of memory (Unable to allocate 7.4 TiB); fewer latents or a small",
        ),
        (MemoryError(), "out of memory (no more is known); "),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory ("),
        (OSError(28, "No space left on device", "run/x"), "fewfire: run/x: No space left on device\n"),
        (OSError(5, "Input/output error"), "fewfire: [Errno 5] Input/output error\n"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_machine_refuses_has_code_1(fails, run, data, monkeypatch, error, sentence):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr("fewfire.outputs.write_codes", refuse)
    assert sentence in fails(1, "encode", run, data, "--out", "z.npy")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_anywhere_is_one_line_and_leaves_no_half_file(fails, run, data, tmp_path, monkeypatch, signum, code):
    """Outside training too, and the handlers are the caller's again."""
    real = os.fsync

    def fsync(handle):
        os.kill(os.getpid(), signum)
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert "interrupted; " in fails(code, "encode", run, data, "--out", "z.npy")
    assert not list(tmp_path.glob("*z.npy*"))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_demo_does_not_advise_what_it_cannot_do(fails, run):
    line = fails(2, "demo", "digits", "--out", run, "--no-open")
    assert line == "fewfire: run is not empty; choose another folder\n"


def test_a_full_disk(fails, run, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    line = fails(1, "encode", run, "rows.npy", "--out", "z.npy")
    assert "z.npy" in line
    assert "No space left on device" in line
    assert not (tmp_path / "z.npy").exists()


def test_a_very_long_error_is_cut(fails, data):
    line = fails(2, "train", data, "--out", "new", "--set", f"train.steps={'x' * 5000}")
    assert "train.steps" in line
    line = fails(2, "train", f"{'x' * 200}/" * 10 + "rows.npy", "--out", "new")
    assert "--debug shows all" in line


@pytest.mark.parametrize("place", [0, 1, 2, 5])
def test_debug_anywhere_shows_where(call, data, monkeypatch, place):
    arguments = ["train", data, "--out", "new", "--set", "model.activation=topp"]
    arguments.insert(place, "--debug")
    monkeypatch.setattr(sys, "argv", ["fewfire", *arguments])
    with pytest.raises(ValueError, match="unknown activation 'topp'"):
        cli.main()


# --------------------------------------------------------------------------- a process of its own, sparingly

PROGRAM = [sys.executable, "-c", "from fewfire.cli import main; main()"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(ff.__file__).parent.parent)}


def test_in_a_process_of_its_own(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    good, debug, usage = (
        subprocess.Popen(
            [*PROGRAM, *arguments.split()],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in (
            "train rows.npy --out run --set train.steps=5",
            "train rows.npy --out bad --set model.activation=topp --debug",
            "train",
        )
    )
    out, err = good.communicate(timeout=60)
    assert (good.returncode, out) == (0, ""), err
    assert len(err.splitlines()) == 2
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    _, err = debug.communicate(timeout=60)
    assert debug.returncode == 1
    assert "Traceback" in err
    assert "ValueError: unknown activation 'topp'" in err
    _, err = usage.communicate(timeout=60)
    assert usage.returncode == 2
    assert err == "fewfire: Missing argument 'DATA'; `fewfire train --help` shows how it is called\n"


@pytest.mark.parametrize("verb", ["config", "--version"], ids=["more than a buffer", "less than a buffer"])
def test_a_reader_that_has_seen_enough(verb):
    """`fewfire config | head -1` is no failure to report."""
    child = subprocess.Popen([*PROGRAM, verb], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert (child.wait(60), err) == (141, b"")


def test_ctrl_c(rows, tmp_path):
    """The run stays where its last checkpoint is, and the person is told how to go on."""
    np.save(tmp_path / "rows.npy", rows)
    settings = ["--set", "train.steps=1000000", "--set", "train.checkpoint_every=50", "--set", "train.log_every=50"]
    child = subprocess.Popen(
        [*PROGRAM, "train", "rows.npy", "--out", "run", *settings],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*")).relative_to(tmp_path)
    assert err.splitlines()[-1].startswith("fewfire: stopped after step ")
    assert err.endswith(f" of 1,000,000; --resume (or fit(resume=True)) goes on from {newest}\n")
    assert "Traceback" not in err
    assert (tmp_path / "run" / "config.yaml").exists()
