"""From a configuration to a run folder and back: what can be said, what is refused, what stays behind."""

import math

import numpy as np
import pytest
import torch
import yaml

import fewfire as ff
from fewfire import runs
from fewfire.autoencoder import default_latents
from fewfire.engines import ENGINES
from fewfire.files import read_config
from fewfire.runs import RunConfig, load_config, open_run, train

FAST = {"steps": 20, "batch_size": 32}


@pytest.fixture
def data(rows, tmp_path):
    np.save(tmp_path / "rows.npy", rows)
    return str(tmp_path / "rows.npy")


def config(path, /, **sections):
    return RunConfig.model_validate(
        {"data": {"path": path}, **sections, "train": {**FAST, **sections.get("train", {})}}
    )


def weights(run):
    return {n: t.clone() for n, t in run.model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------------------------------- configurations


def settings(*text, file=None):
    return load_config(file, text)


def test_set_reaches_every_section():
    c = settings(
        "train.steps=500",
        "train.betas=[0.8, 0.99]",
        "model.n_latents=64",
        "data.options={size: 4}",
        "data.options.n=100",
        "corruption={name: masking, level: 0.5}",
        "train.schedules={kl.weight: [[0, 0], [1, 3]]}",
        "data.preprocess=null",
        "train.device=cpu",
    )
    assert c.train.steps == 500
    assert c.train.betas == (0.8, 0.99)
    assert c.model.n_latents == 64
    assert c.data.options == {"size": 4, "n": 100}
    assert c.corruption == {"name": "masking", "level": 0.5}
    assert c.train.schedules == {"kl.weight": [(0, 0), (1, 3)]}
    assert c.data.preprocess is None


def test_set_reaches_into_an_activation_by_default_by_name_and_by_settings(tmp_path):
    assert settings("model.activation.k=8").model.activation == {"name": "topk", "k": 8}, "the default's k"
    assert settings("model.network.tied=true").model.network == {"name": "linear", "tied": True}
    (tmp_path / "c.yaml").write_text("model: {activation: topk}")
    assert settings("model.activation.k=8", file=tmp_path / "c.yaml").model.activation == {"name": "topk", "k": 8}
    (tmp_path / "c.yaml").write_text("model: {activation: {name: topk, k: 3}}")
    assert settings("model.activation.k=8", file=tmp_path / "c.yaml").model.activation == {"name": "topk", "k": 8}
    assert settings("model.activation=relu").model.activation == "relu"


def test_set_reaches_into_lists(tmp_path):
    c = settings("objective=[mse, {name: l1, weight: 2}, mse]", "objective.1.weight=5", "objective.2.weight=3")
    assert c.objective == ["mse", {"name": "l1", "weight": 5}, {"name": "mse", "weight": 3}]
    with pytest.raises(ValueError, match=r"--set objective.kl.weight=3: expected a number below 1 where it says 'kl'"):
        settings("objective=[mse]", "objective.kl.weight=3")


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "+1e-3", "1.e-3", ".1e-2", "0.001"])
def test_numbers_as_everybody_writes_them(text, tmp_path):
    """YAML 1.1 reads 1e-3 as text, and a text is no weight."""
    (tmp_path / "c.yaml").write_text(
        f"objective: [mse, {{name: l1, weight: {text}}}]\ntrain: {{learning_rate: {text}}}"
    )
    for c in (settings(file=tmp_path / "c.yaml"), settings(f"objective=[mse, {{name: l1, weight: {text}}}]")):
        assert c.objective[1]["weight"] == 0.001
    assert settings(f"train.learning_rate={text}").train.learning_rate == 0.001
    assert settings("data.path=1e").data.path == "1e", "and what is no number stays text"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train.steps", "expected --set key=value, such as train.steps=500; got 'train.steps'"),
        ("=5", "expected --set key=value"),
        ("train.stepz=5", "train.stepz"),
        ("trian.steps=5", "trian"),
        ("train.steps=many", "train.steps"),
        ("train.steps=-1", "train.steps"),
        ("train.steps=[1", "the value is not YAML"),
        ("train.steps.more=1", "train.steps"),
        ("train=5", "train"),
        ("objective=mse", "objective"),
    ],
)
def test_set_refuses(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- 1\n- 2", "expected sections"),
        ("just text", "expected sections"),
        ("a: [1, 2", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("data: digits", "there is no 'path' in 'digits'"),
        ("modell: {}", "modell"),
        ("x" * (1 << 17) + "x", "at most 128 KiB"),
    ],
)
def test_files_that_are_refused(text, sentence, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        load_config(tmp_path / "c.yaml", path="digits")


def test_files_that_are_not_there_or_binary(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config file .*no.yaml"):
        load_config(tmp_path / "no.yaml")
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(tmp_path / "c.yaml")
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


def test_later_settings_win_and_the_file_is_not_changed(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {steps: 5}\ndata: {path: a.npy, options: {x: 1}}")
    c = load_config(tmp_path / "c.yaml", ["train.steps=6", "train.steps=7"], path="b.npy")
    assert c.train.steps == 7
    assert c.data.path == "b.npy"
    assert c.data.options == {"x": 1}


# ------------------------------------------------------------------------------------------------- runs


def test_train_leaves_a_whole_run(data, tmp_path):
    run = train(config(data), tmp_path / "a" / "run", progress=False)
    assert sorted(p.name for p in run.path.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl", "model"]
    assert run.model.n_latents == 4 * 12
    assert run.model.preprocess.name == "standardize"
    assert run.history()[-1]["summary"]["n_rows"] == 200
    assert run.provenance["rows"] == 200
    assert run.provenance["data"] == data
    assert run.provenance["steps"] == 20
    assert run.provenance["summary"] == run.history()[-1]["summary"]
    again = open_run(tmp_path / "a" / "run")
    assert same(weights(again), weights(run))
    assert again.config == run.config


def test_the_saved_configuration_is_whole_and_runs_again_to_the_same_bits(data, tmp_path):
    first = train(
        config(data, corruption="masking", train={"validation_fraction": 0.1}), tmp_path / "1", progress=False
    )
    text = (tmp_path / "1" / "config.yaml").read_text()
    c = load_config(tmp_path / "1" / "config.yaml")
    resolved = c.model_dump(mode="json")
    assert resolved["model"]["activation"].items() >= {"name": "topk", "k": 3}.items()
    assert resolved["model"]["n_latents"] == 48
    assert resolved["data"]["preprocess"]["name"] == "standardize"
    assert [t["name"] for t in resolved["objective"]] == ["mse", "auxk"]
    assert resolved["corruption"] == {"name": "masking", "level": 0.25}
    assert resolved["train"]["epochs"] is None
    depend_on_the_data = "steps batch_size learning_rate checkpoint_every validate_every log_every dead_after"
    assert all(resolved["train"][name] is not None for name in depend_on_the_data.split())
    second = train(c, tmp_path / "2", progress=False)
    assert same(weights(first), weights(second))
    assert (tmp_path / "2" / "config.yaml").read_text() == text
    assert "python" not in text, "plain YAML"


def test_the_source_is_opened_as_it_was(tmp_path):
    c = RunConfig.model_validate({"data": {"path": "patches", "options": {"size": 4, "n": 300}}, "train": FAST})
    run = train(c, tmp_path / "run", progress=False)
    for source in (run.source(), run.source("patches"), open_run(tmp_path / "run").source("patches")):
        assert source.row_shape == (16,)
        assert source.n_rows == 300
    assert run.source(np.zeros((5, 16))).n_rows == 5


def test_a_run_is_used_from_any_folder(rows, tmp_path, monkeypatch):
    """What was a relative path in one folder would be nothing in another."""
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "rows.npy", rows)
    monkeypatch.chdir(tmp_path / "a")
    train(config("../a/rows.npy"), "../run", progress=False)
    monkeypatch.chdir("/")
    run = open_run(tmp_path / "run")
    assert run.config.data.path == str(tmp_path / "a" / "rows.npy")
    assert run.source().n_rows == 200
    assert run.provenance["data"] == "../a/rows.npy", "what is passed on with the model names nobody's folders"
    monkeypatch.chdir(tmp_path / "a")
    named_again = train(load_config("../run/config.yaml", path="rows.npy"), "../run", resume=True, progress=False)
    assert named_again.config == run.config
    np.save("digits", rows)
    builtin = RunConfig.model_validate({"data": {"path": "digits"}, "train": {**FAST, "steps": 1}})
    assert train(builtin, tmp_path / "digits", progress=False).config.data.path == "digits", "always the built-in"


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_data_that_changed_since_are_told(data, tmp_path, rows, held_out):
    run = train(config(data, train={"validation_fraction": held_out}), tmp_path / "run", progress=False)
    run.source()  # as they were
    np.save(data, rows + 1e-3)
    for source in (run.source, open_run(tmp_path / "run").source):
        with pytest.raises(
            ValueError, match=r"rows.npy is not, or no longer, what .*run was trained on; name the data"
        ):
            source()
    with pytest.warns(UserWarning, match=r"rows.npy is not, or no longer, what .*run was trained on$"):
        assert run.source(data).n_rows == 200
    other = str(tmp_path / "other.npy")
    np.save(other, rows + 1)
    assert run.source(other).n_rows == 200, "other data are other data"


def test_bare_model_folder(data, tmp_path, rows):
    train(config(data), tmp_path / "run", progress=False)
    bare = open_run(tmp_path / "run" / "model")
    assert bare.config is None
    assert bare.history() == []
    assert bare.provenance["data"] == data
    with pytest.raises(ValueError, match="does not say what it was trained on; name the data"):
        bare.source()
    assert bare.source(rows).n_rows == 200
    with pytest.raises(FileNotFoundError, match="there is no"):
        open_run(tmp_path / "nothing")


# ---------------------------------------------------------------------------------- starts that fail


def everything(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_existing_folder_is_refused_and_untouched(data, tmp_path):
    train(config(data), tmp_path / "run", progress=False)
    before = everything(tmp_path / "run")
    with pytest.raises(FileExistsError, match="is not empty; choose another folder, or --resume"):
        train(config(data, train={"seed": 3}), tmp_path / "run", progress=False)
    assert everything(tmp_path / "run") == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file; expected the name of a folder"):
        train(config(data), tmp_path / "file", progress=False)
    with pytest.raises(FileExistsError, match="is a file"):
        train(config(data), tmp_path / "file", resume=True, progress=False)
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    train(config(data), tmp_path / "empty", progress=False)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"model": {"activation": "topp"}}, ValueError),
        ({"objective": ["mse", "kl"]}, ValueError),
        ({"train": {"engine": "warp"}}, ValueError),
        ({"train": {"device": "gpu"}}, ValueError),
        ({"data": {"path": "no.npy"}}, FileNotFoundError),
        ({"data": {"path": None}}, ValueError),
        ({"model": {"network": {"name": "linear", "output": "sigmoid"}, "activation": "sigmoid"}}, ValueError),
    ],
)
def test_a_start_that_failed_leaves_nothing_in_the_way_of_the_next(data, tmp_path, sections, error):
    with pytest.raises(error):
        train(config(data, **sections), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    train(config(data), tmp_path / "run", progress=False)


@pytest.mark.parametrize("preprocess", ["auto", None], ids=["found by the preprocess", "found by a step"])
@pytest.mark.parametrize("folder_is_there", [False, True])
def test_bad_data_leave_nothing_in_the_way_either(rows, tmp_path, preprocess, folder_is_there):
    out = tmp_path / "run"
    if folder_is_there:
        out.mkdir()
    bad = rows.copy()
    bad[17, 2] = np.inf
    np.save(tmp_path / "bad.npy", bad)
    path = str(tmp_path / "bad.npy")
    c = config(path, data={"path": path, "preprocess": preprocess}, train={"checkpoint_every": 0})
    with pytest.raises((ValueError, ff.TrainingError), match="row 17"):
        train(c, out, progress=False)
    assert out.exists() == folder_is_there
    assert not folder_is_there or not any(out.iterdir())
    np.save(tmp_path / "bad.npy", rows)
    train(c, out, progress=False)


def test_ctrl_c_before_the_first_checkpoint_and_after(data, tmp_path, monkeypatch):
    def press_at(step):
        inner = ff.Trainer._step

        def pressed(trainer, batch):
            if trainer.state.step == step:
                raise KeyboardInterrupt
            return inner(trainer, batch)

        with monkeypatch.context() as patch:
            patch.setattr(ff.Trainer, "_step", pressed)
            with pytest.raises(KeyboardInterrupt):
                train(config(data, train={"checkpoint_every": 5}), tmp_path / "run", progress=False)

    press_at(3)
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    press_at(3)
    assert not list((tmp_path / "run").iterdir())
    press_at(12)
    assert (tmp_path / "run" / "config.yaml").exists()
    resumed = train(load_config(tmp_path / "run" / "config.yaml"), tmp_path / "run", resume=True, progress=False)
    whole = train(config(data), tmp_path / "whole", progress=False)
    assert same(weights(resumed), weights(whole))


def test_somebody_elses_files_are_never_removed(data, tmp_path):
    out = tmp_path / "home"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years")
    c = config(data, model={"network": {"name": "linear", "output": "sigmoid"}, "activation": "sigmoid"})
    with pytest.raises(ValueError, match="between 0 and 1"):
        train(c, out, resume=True, progress=False)  # without a checkpoint: starts afresh
    assert (out / "thesis.tex").read_text() == "ten years"


def test_a_refused_resume_changes_nothing(data, tmp_path):
    train(config(data), tmp_path / "run", progress=False)
    before = everything(tmp_path / "run")
    with pytest.raises(ValueError, match=r"train.steps was 20 and is 30; |train.steps was 20 and is 30\."):
        train(config(data, train={"steps": 30}), tmp_path / "run", resume=True, progress=False)
    assert everything(tmp_path / "run") == before
    train(load_config(tmp_path / "run" / "config.yaml"), tmp_path / "run", resume=True, progress=False)


def test_a_resume_may_change_what_does_not_touch_the_numbers(data, tmp_path):
    first = train(config(data), tmp_path / "run", progress=False)
    c = load_config(tmp_path / "run" / "config.yaml", ["train.checkpoint_every=7"])
    again = train(c, tmp_path / "run", resume=True, progress=False)
    assert again.config.train.checkpoint_every == 7
    assert same(weights(first), weights(again))


def test_a_resumed_run_keeps_its_number_of_threads(data, tmp_path):
    """Also in its configuration, where the next resume reads it."""
    train(config(data, train={"threads": 2, "checkpoint_every": 5}), tmp_path / "run", progress=False)
    (tmp_path / "run" / "checkpoints" / "step-000000020.safetensors").unlink()
    assert load_config(tmp_path / "run" / "config.yaml").train.threads == 2
    train(config(data, train={"checkpoint_every": 5}), tmp_path / "run", resume=True, progress=False)
    assert load_config(tmp_path / "run" / "config.yaml").train.threads == 2


def test_skipped_nan_rows_do_not_spoil_the_end(rows, tmp_path):
    """Rows that training skipped are left out of its summary as well."""
    rows = rows.copy()
    rows[3] = np.nan
    np.save(tmp_path / "bad.npy", rows)
    c = config("x", data={"path": str(tmp_path / "bad.npy"), "preprocess": None}, train={"on_nonfinite": "skip"})
    run = train(c, tmp_path / "run", progress=False)
    assert run.provenance["summary"]["mse"] > 0
    assert run.provenance["summary"]["n_rows"] == 199
    assert all(torch.isfinite(t).all() for t in weights(run).values())
    assert run.history()[-1]["skipped"] >= 2


def test_provenance_in_the_models_header(data, tmp_path):
    run = train(config(data), tmp_path / "run", progress=False)
    saved = read_config(run.path)["provenance"]
    assert saved["data_fingerprint"] == ff.open_source(data).fingerprint
    assert saved["train"]["seed"] == 0
    assert saved["engine"].split()[0] in [engine.name for engine in ENGINES]
    assert all(math.isfinite(v) for v in saved["summary"].values())


def test_make_trainer_defaults_to_what_suits_the_source(monkeypatch):
    trainer = runs.make_trainer(RunConfig(), ff.digits(), progress=False)
    assert trainer.model.preprocess.name == "center"
    assert trainer.model.layout.kind == "image"
    assert trainer.model.n_latents == 256
    small, narrow = runs.ModelConfig(activation={"name": "topk", "k": 1}), ff.ArraySource(np.zeros((2, 3)))
    assert runs.make_trainer(RunConfig(model=small), narrow, progress=False).model.n_latents == 12
    monkeypatch.setattr("fewfire.autoencoder.MOST_LATENTS", 8)
    assert runs.make_trainer(RunConfig(model=small), narrow, progress=False).model.n_latents == 8


def test_saved_yaml_is_read_back_as_it_was_written(data, tmp_path):
    """Small numbers come back as numbers, in any YAML reader."""
    train(config(data, train={"learning_rate": 1e-5, "eps": 1e-12}), tmp_path / "run", progress=False)
    plain = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert plain["train"]["learning_rate"] == 1e-5
    assert plain["train"]["eps"] == 1e-12


@pytest.mark.parametrize("rho", [0.05, 0.2])
def test_units_under_kl_start_at_the_mean_that_it_asks_for(rho):
    sections = {"model": {"activation": "sigmoid"}, "objective": ["mse", {"name": "kl", "rho": rho}]}
    trainer = runs.make_trainer(RunConfig.model_validate(sections), ff.digits(), progress=False)
    assert torch.allclose(trainer.model.encoder.b_enc.sigmoid(), torch.tensor(rho))
    plain = runs.make_trainer(RunConfig(), ff.digits(), progress=False)
    assert plain.model.encoder.b_enc.eq(0).all()


def test_the_defaults_of_logistic_units_meet_their_own_target(recwarn):
    """They came to a mean activation of 0.14 for 0.05, and to a warning."""
    sections = {"model": {"activation": "sigmoid"}, "train": {"epochs": 60, "threads": 1}}
    trainer = runs.make_trainer(RunConfig.model_validate(sections), ff.digits(), progress=False)
    trainer.fit()
    assert not list(recwarn)
    assert list(trainer.terms) == ["mse", "kl", "weight_decay"]
    assert trainer.summary["mean_activation"] < 0.08
    assert trainer.summary["explained_variance"] > 0.8


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((3,), 12), ((64,), 256), ((784,), 3136), ((3, 32, 32), 1365), ((5000,), 838), ((100_000,), 64), ((1,), 4)],
)
def test_how_many_latents_by_default(shape, expected):
    """Of 40 pictures of 32 x 32 in colour it made 12,288, an hour's work in 1.7 GB."""
    assert default_latents(shape) == expected


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps=100", "no setting 'steps'; `fewfire config` prints what there is; did you mean 'train.steps'"),
        ("train.n_latents=3", "did you mean 'model.n_latents'"),
        ("train.stepz=3", "did you mean 'steps'"),
        ("data.options.delimiter=,", """in quotes it is text: --set "data.options.delimiter=','\""""),
        ("data.options.delimiter=|", """--set "data.options.delimiter='|'\""""),
    ],
)
def test_a_setting_that_is_elsewhere_or_needs_quotes(text, sentence):
    with pytest.raises(ValueError) as refusal:
        settings(text)
    assert sentence in str(refusal.value)


def test_train_config_alone_refuses_in_one_line():
    with pytest.raises(ValueError, match=r"^no setting 'step'; .* did you mean 'steps'\?$"):
        ff.TrainConfig(step=3)
    with pytest.raises(ValueError, match=r"^steps: Input should be greater than or equal to 1; got 0$"):
        ff.TrainConfig(steps=0)
    with pytest.raises(ValueError, match=r"^expected steps or epochs, got both; leave one out$"):
        ff.TrainConfig(steps=1, epochs=1)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize(("activation", "told"), [("topk", True), ("gated", False)])
def test_the_terminal_names_the_engine_and_what_a_compiler_would_change(
    tmp_path, monkeypatch, capsys, activation, told
):
    monkeypatch.setenv("FEWFIRE_ISA", "none")
    settings = ["train.steps=2", "model.n_latents=1024", f"model.activation.name={activation}"]
    train(load_config(None, settings, path="digits"), tmp_path / "run")
    said = capsys.readouterr().err
    assert f"engine {'fused' if told else 'autograd'}: " in said
    assert ("compiled kernels would take a half to a quarter of the time" in said) == told
    assert said.count("FEWFIRE_ISA is none") == told
