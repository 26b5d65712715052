"""Pairs and views: transcoders and crosscoders are uses of the same model, trainer, metrics and files."""

import json
import sys
import warnings

import numpy as np
import pytest
import torch
import yaml

import fewfire as ff
from fewfire import cli, runs
from fewfire.contracts import Layout, Source
from fewfire.sources import CsvSource, Pairs, SyntheticWorld, cut_windows, open_source, views

N, D, D_OUT = 4000, 16, 10
FAST = ["--set", "train.steps=20", "--set", "train.batch_size=32"]


def sparse_rows(n_features=24, d=D, n=N, seed=0):
    """(n, n_features) coefficients, of which few are not 0, and (n, d) rows made of them."""
    generator = np.random.default_rng(seed)
    fires = generator.random((n, n_features)) < 0.06
    coefficients = fires * (0.5 + generator.random((n, n_features)))
    directions = generator.normal(size=(n_features, d))
    return coefficients, (coefficients @ directions).astype(np.float32)


@pytest.fixture(scope="module")
def pair():
    """Rows, and what a known map makes of their sparse features: in other units, with an offset, of another width."""
    coefficients, x = sparse_rows()
    written = np.random.default_rng(1).normal(size=(coefficients.shape[1], D_OUT))
    return x, (300 * coefficients @ written - 1000).astype(np.float32)


@pytest.fixture
def folder(pair, tmp_path, monkeypatch):
    """in.npy (400, 16), out.npy (400, 10) and same.npy (400, 16), in the working folder."""
    monkeypatch.chdir(tmp_path)
    x, y = pair
    for name, array in (("in", x), ("out", y), ("same", 1000 * x[:, ::-1] + 5)):
        np.save(tmp_path / f"{name}.npy", array[:400])
    return tmp_path


@pytest.fixture
def fewfire(monkeypatch, capsys):
    """``fewfire("evaluate", "run")`` -> standard output; a call that fails is a ValueError with its one line."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main() sets it; put it back afterwards

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewfire", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        if end.value.code:
            assert err.count("\n") == 1, err
            raise ValueError(err.strip())
        return out

    return call


def killed_at(step, trainer):
    """The trainer, after a fit that fails at this step."""
    inner = trainer._step

    def dies(batch):
        if trainer.state.step == step:
            raise RuntimeError("killed")
        return inner(batch)

    trainer._step = dies
    with pytest.raises(RuntimeError, match="killed"):
        trainer.fit()
    return trainer


def same_weights(a, b):
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# ------------------------------------------------------------------------------------------------------- pairs


def test_pairs_give_each_row_with_its_target(pair):
    x, y = pair
    source = Pairs(x, ff.ArraySource(y))
    assert isinstance(source, Source)
    assert (source.n_rows, source.row_shape, source.target_shape, source.has_target) == (N, (D,), (D_OUT,), True)
    for part in (source, *source.split(0.3, seed=2), source.split(0.3)[0].split(0.5)[1]):
        batch = next(part.batches(50, seed=3, epoch=1, start=1))
        assert torch.equal(batch.x_in, torch.tensor(x)[batch.rows])
        assert torch.equal(batch.x, torch.tensor(y)[batch.rows])


def test_pairs_of_parts_count_the_rows_of_the_parts(pair):
    x, y = pair
    left, right = ff.ArraySource(x, labels=np.arange(N)).split(0.5)[0], ff.ArraySource(y).split(0.5)[0]
    source = Pairs(left, right)
    (batch,) = source.batches(N)
    numbers = torch.tensor(source.labels[batch.rows])
    assert torch.equal(batch.x_in, torch.tensor(x)[numbers])
    assert torch.equal(batch.x, torch.tensor(y)[numbers])


def test_the_fingerprint_of_pairs_is_of_both(pair):
    x, y = pair
    sources = [Pairs(x, y), Pairs(x + 1, y), Pairs(x, y + 1), ff.ArraySource(x), *Pairs(x, y).split(0.5)]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert Pairs(x.copy(), y).fingerprint == sources[0].fingerprint


def test_a_transcoder_says_what_a_map_makes_of_sparse_features(pair):
    x, y = pair
    source = open_source(x, target=y)
    training, held_out = source.split(0.2)
    config = runs.RunConfig.model_validate(
        {
            "model": {"n_latents": 48, "activation": {"name": "topk", "k": 4}},
            "train": {"steps": 1200, "batch_size": 128, "learning_rate": 3e-3},
        }
    )
    trainer = runs.make_trainer(config, training, progress=False)
    trainer.fit()
    assert trainer.model.target_shape == (D_OUT,)
    assert ff.evaluate(trainer.model, held_out)["explained_variance"] > 0.8, "the mean gives 0"
    copied = trainer.model.reconstruct(x[:3])
    assert copied.shape == (3, D_OUT)
    assert copied.mean() == pytest.approx(y[:3].mean(), rel=0.5), "in the units of the target"


def test_targets_have_a_preprocess_of_their_own_in_a_run(pair):
    x, y = pair
    digits = open_source(x[:1797], target="digits")
    auto = runs.RunConfig()
    for source, config, name in (
        (open_source(x, target=y[:, :1].repeat(D, 1)), auto, "standardize"),  # of the rows' shape, in other units
        (digits, auto, "center"),
        (digits, runs.load_config(None, ["data.preprocess_out=minmax"]), "minmax"),
        (digits, runs.load_config(None, ["data.preprocess_out=null"]), None),
        (open_source(x), auto, None),
    ):
        trainer = runs.make_trainer(config, source, progress=False)
        assert trainer.model.preprocess.name == "standardize"
        assert getattr(trainer.model.preprocess_out, "name", None) == name
    with pytest.raises(ValueError, match=r"preprocess_out='center' is for targets, and the data give none"):
        runs.make_trainer(runs.load_config(None, ["data.preprocess_out=center"]), open_source(x), progress=False)


@pytest.mark.parametrize("kind", ["transcoder", "crosscoder"])
def test_a_resumed_run_has_the_bits_of_one_that_was_not(pair, tmp_path, kind):
    x, y = pair

    def trainer(folder):
        source = Pairs(x, y) if kind == "transcoder" else ff.Views([x, 2 * x + 1])
        out = "standardize" if kind == "transcoder" else None
        model = ff.Autoencoder(
            source.row_shape, 32, ff.TopK(k=3), d_out=source.target_shape, preprocess="standardize", preprocess_out=out
        )
        config = ff.TrainConfig(steps=30, batch_size=300, checkpoint_every=10)  # into a second and a third epoch
        return ff.Trainer(model, source, config=config, folder=folder, progress=False)

    whole = trainer(None)
    whole.fit()
    killed_at(25, trainer(tmp_path))
    resumed = trainer(tmp_path)
    resumed.fit(resume=True)
    assert same_weights(whole.model, resumed.model)


def test_a_transcoder_from_two_files_and_back(folder, fewfire, monkeypatch):
    fewfire("train", "in.npy", "--set", "data.options.target=out.npy", "--out", "run", *FAST)
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    saved = yaml.safe_load((folder / "run" / "config.yaml").read_text())["data"]
    assert saved["options"]["target"] == str(folder / "out.npy"), "from anywhere"
    assert saved["preprocess_out"]["name"] == "standardize"
    found = json.loads(fewfire("evaluate", folder / "run", "--json"))
    again = json.loads(fewfire("evaluate", folder / "run", folder / "in.npy", "--json"))
    run = runs.open_run(folder / "run")
    source = Pairs(np.load(folder / "in.npy"), np.load(folder / "out.npy"))
    assert found == again == pytest.approx(ff.evaluate(run.model, source))
    fewfire("report", folder / "run")
    assert "16 values" in (folder / "run" / "report.html").read_text()
    before = runs.open_run(folder / "run").model
    fewfire("train", folder / "in.npy", "--out", folder / "run", "--resume")
    assert same_weights(before, runs.open_run(folder / "run").model)
    fewfire("reconstruct", folder / "run", folder / "in.npy", "--out", "recon.npy")
    assert np.load("recon.npy").shape == (400, D_OUT)


def test_a_run_resumed_with_another_target_is_refused(folder, fewfire):
    fewfire("train", "in.npy", "--set", "data.options.target=same.npy", "--out", "run", *FAST)
    np.save("same.npy", np.load("same.npy") + 1)
    with pytest.raises(ValueError, match="cannot resume"):
        fewfire("train", "in.npy", "--out", "run", "--resume")
    with pytest.raises(ValueError, match="is not, or no longer, what run was trained on"):
        fewfire("evaluate", "run")


def test_other_rows_need_a_target_of_their_own_where_it_is_looked_at(folder, fewfire):
    fewfire("train", "in.npy", "--set", "data.options.target=same.npy", "--out", "run", *FAST)
    np.save("other.npy", np.load("in.npy")[:300])
    np.save("its.npy", np.load("same.npy")[:300])
    for verb in (["evaluate"], ["report"], ["score", "--out", "s.csv"]):
        with pytest.raises(ValueError, match=r"was trained on pairs, and other.npy are rows without targets"):
            fewfire(verb[0], "run", "other.npy", *verb[1:])
    fewfire("encode", "run", "other.npy", "--out", "z.npz")  # looks at the rows alone
    given = ["--set", "data.options.target=its.npy"]
    found = json.loads(fewfire("evaluate", "run", "other.npy", *given, "--json"))
    assert found["n_rows"] == 300
    assert found["mse"] > 1e4, "of a target in thousands, after twenty steps"
    fewfire("score", "run", "other.npy", *given, "--out", "s.csv")
    fewfire("report", "run", "other.npy", *given)
    with pytest.raises(ValueError, match=r"other data than the run's own; name the data"):
        fewfire("evaluate", "run", *given)
    with pytest.raises(ValueError, match=r"expected --set data.options.NAME=VALUE, of DATA; got 'train.steps=3'"):
        fewfire("evaluate", "run", "other.npy", "--set", "train.steps=3")


def test_a_target_may_have_options_of_its_own(folder):
    np.savez(folder / "x.npz", a=np.zeros((400, 3)), b=np.arange(800.0).reshape(400, 2))
    source = open_source(str(folder / "x.npz"), array="a", target={"path": str(folder / "x.npz"), "array": "b"})
    assert (source.row_shape, source.target_shape) == ((3,), (2,))
    options = {"array": "a", "target": {"path": "x.npz", "array": "b"}, "views": [{"path": "in.npy"}, "same.npy"]}
    data = runs.folder._rooted(runs.DataConfig(path="x.npz", options=options))
    assert data.options["target"] == {"path": str(folder / "x.npz"), "array": "b"}
    assert data.options["views"] == [{"path": str(folder / "in.npy")}, str(folder / "same.npy")]
    assert data.options["array"] == "a"


def csv(folder):
    (folder / "t.csv").write_text("a,b\n" + "1,2\n" * N)
    return CsvSource(folder / "t.csv")


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (
            lambda x, folder: Pairs(x, x[1:]),
            ValueError,
            "as many rows in each, one for one; array has 4,000, array has 3",
        ),
        (lambda x, folder: Pairs(x, csv(folder)), ValueError, r"the target, 't': expected rows .* got a CsvSource"),
        (lambda x, folder: Pairs(SyntheticWorld(n_rows=N), x), ValueError, "the data, 'world': .* SyntheticWorld"),
        (lambda x, folder: Pairs(x, Pairs(x, x)), ValueError, "the target, 'array', has a target beside its rows"),
        (lambda x, folder: Pairs(cut_windows(ff.ArraySource(x), 3), x[2:]), ValueError, "the data, 'array': windows"),
        (lambda x, folder: Pairs(x, "out.npy"), TypeError, r"open the file first: ff.open_source\('out.npy'\)"),
        (lambda x, folder: Pairs(x, x[:, 0]), ValueError, "shape"),
        (
            lambda x, folder: open_source(x, target="gone.npy"),
            FileNotFoundError,
            "target: no such file or folder: gone.npy",
        ),
        (lambda x, folder: open_source(x, target=7), TypeError, "target: cannot read data from a int"),
        (lambda x, folder: open_source(x, target={"pth": "x"}), ValueError, r"expected a path, or \{path: ..., option"),
        (lambda x, folder: open_source(x, target={"path": x, "data": x}), ValueError, "target: expected a path, or"),
        (lambda x, folder: open_source(x, views=[x, "gone.npy"]), FileNotFoundError, "view 2: no such file"),
        (lambda x, folder: open_source(x, view_names=["a"]), ValueError, "say which they are with views"),
        (lambda x, folder: ff.Views([x]), ValueError, "expected two views or more; got 1"),
        (lambda x, folder: ff.Views([x, x[1:]]), ValueError, "array has 4,000, array has 3,999"),
        (lambda x, folder: ff.Views([x, csv(folder)]), ValueError, "view 1, 't': expected rows"),
        (lambda x, folder: ff.Views([x, Pairs(x, x)]), ValueError, "view 1, 'array', has a target"),
        (lambda x, folder: ff.Views([x, x], names=["a"]), ValueError, "a name for each of the 2 views"),
        (lambda x, folder: ff.Views([x, x], names=["a", "a"]), ValueError, "all different"),
        (lambda x, folder: ff.Views([x, x], names=["a:b", "c"]), ValueError, "without ':'"),
        (lambda x, folder: ff.Views([x, x], names=x), ValueError, "a name for each"),
        (lambda x, folder: ff.Views([x, x], names="ab"), ValueError, "a name for each"),
    ],
)
def test_what_cannot_be_aligned_is_refused_in_a_line(pair, tmp_path, make, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        make(pair[0], tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


# ------------------------------------------------------------------------------------------------------- views


def test_views_of_one_width_are_lines_of_a_row_and_no_picture(pair):
    x = pair[0]
    source = ff.Views([x, -x, ff.ArraySource(x * 2, name="b")], names=["a", 1, "b"])
    assert isinstance(source, Source)
    assert source.row_shape == source.target_shape == (3, D)
    assert source.layout == Layout("table", columns=tuple(f"{name}:{i}" for name in "a1b" for i in range(D)))
    assert source.views == [("a", slice(0, D)), ("1", slice(D, 2 * D)), ("b", slice(2 * D, 3 * D))]
    for part in (source, *source.split(0.3)):
        batch = next(part.batches(50, seed=3, epoch=1, start=1))
        rows = torch.tensor(x)[batch.rows]
        assert torch.equal(batch.x, torch.stack([rows, -rows, 2 * rows], dim=1))
        assert batch.x is batch.x_in


def test_views_of_several_widths_are_columns_beside_each_other(pair):
    import pandas as pd

    x, y = pair
    table = ff.ArraySource(pd.DataFrame(y[:, :2].astype(float), columns=["width", "height"]), name="sizes")
    pictures = ff.ArraySource(x.reshape(N, 4, 4), name="pictures", labels=np.arange(N))
    source = ff.Views([pictures, table])
    assert source.row_shape == (D + 2,)
    assert source.layout.columns[-3:] == ("pictures:15", "sizes:width", "sizes:height"), "the sources' names"
    assert source.views == [("pictures", slice(0, D)), ("sizes", slice(D, D + 2))]
    (batch,) = source.batches(N)
    assert batch.x.dtype == torch.float64, "the more precise of the two"
    assert torch.equal(batch.x, torch.tensor(np.hstack([x, y[:, :2]]), dtype=torch.float64)[batch.rows])
    assert (source.labels == np.arange(N)).all()
    assert ff.Views([pictures, pictures]).row_shape == (2, D), "laid flat"
    assert ff.Views([pictures, pictures]).views[1][0] == "1", "two of one name are numbered"
    assert ff.Views([ff.ArraySource(x, name="a:b"), table]).views[0][0] == "a_b", "a colon ends the name in a column's"


def test_the_fingerprint_of_views_is_of_all_in_their_order_and_not_of_their_names(pair):
    x, y = pair
    sources = [ff.Views([x, y]), ff.Views([x, y + 1]), ff.Views([y, x]), ff.Views([x, y, y])]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert ff.Views([x, y], names=["in", "out"]).fingerprint == sources[0].fingerprint


def test_columns_of_very_wide_views_have_no_names(monkeypatch, pair):
    monkeypatch.setattr(views, "MOST_NAMED", 2 * D - 1)
    assert ff.Views([pair[0]] * 2).layout == Layout("table")


N_SHARED, N_PRIVATE = 8, 5


@pytest.fixture(scope="module")
def two_layers():
    """Two views of a world: 8 features that both write, then 5 of the first alone, and 5 of the second."""
    world = ff.SyntheticWorld(N_SHARED + 2 * N_PRIVATE, 32, n_rows=6000, probability=0.08, seed=3)
    (batch,) = world.batches(6000, shuffle=False)
    truth = world.truth(batch.rows).numpy()
    writes = np.random.default_rng(0).normal(size=(2, truth.shape[1], 24)) / 5
    writes[0, N_SHARED + N_PRIVATE :] = 0
    writes[1, N_SHARED : N_SHARED + N_PRIVATE] = 0
    a, b = (truth @ w for w in writes)
    return truth, a.astype(np.float32), (1000 * b + 7).astype(np.float32)  # other units: preprocessing is by column


@pytest.fixture(scope="module")
def crosscoder(two_layers):
    _, a, b = two_layers
    source = ff.Views([a, b], names=["early", "late"])
    model = ff.Autoencoder(source.row_shape, 24, ff.TopK(k=3), preprocess="standardize", layout=source.layout, seed=1)
    config = ff.TrainConfig(steps=2500, batch_size=256, learning_rate=3e-3)
    ff.Trainer(model, source, config=config, progress=False).fit()
    return model, source


def test_a_crosscoder_tells_shared_features_from_private_ones(two_layers, crosscoder):
    truth, _, _ = two_layers
    model, source = crosscoder
    assert ff.evaluate(model, source)["fvu_columns"] < 0.1
    (batch,) = source.batches(6000, shuffle=False)
    latents = model.encode(batch.x).numpy()
    alike = np.corrcoef(truth.T, latents.T + 1e-9 * np.random.default_rng(0).normal(size=latents.T.shape))
    alike = alike[: truth.shape[1], truth.shape[1] :]
    found, best = alike.max(1), alike.argmax(1)
    assert (found > 0.9).mean() >= 0.9, "nearly every feature has a latent"
    shares = ff.view_shares(model).shares.numpy()[best]
    first = np.repeat([0.5, 1, 0], [N_SHARED, N_PRIVATE, N_PRIVATE])
    assert (np.abs(shares[:, 0] - first) < 0.15)[found > 0.9].all()


def test_shares_are_of_the_norms_of_what_a_latent_writes(crosscoder):
    model, source = crosscoder
    norms, shares = ff.view_shares(model)
    decoder = model.decoder.W_dec.detach().reshape(24, 2, 24)
    torch.testing.assert_close(norms, decoder.square().sum(2).sqrt())
    torch.testing.assert_close(shares.sum(1), torch.ones(24))
    for said in (source.views, [slice(0, 24), slice(24, 48)]):
        assert torch.equal(ff.view_shares(model, said).shares, shares)
    flat = ff.Autoencoder(5, 3, "relu")
    with torch.no_grad():
        flat.decoder.W_dec.copy_(torch.tensor([[3.0, 4, 0, 0, 0], [3, 4, 0, 0, 15], [0, 0, 0, 0, 0]]))
    norms, shares = ff.view_shares(flat, [slice(0, 2), slice(2, 5)])
    assert norms.tolist() == [[5, 0], [5, 15], [0, 0]]
    assert shares[:2].tolist() == [[1, 0], [0.25, 0.75]]
    assert shares[2].isnan().all(), "of nothing there are no shares"


@pytest.mark.parametrize(
    ("model", "said", "sentence"),
    [
        (ff.Autoencoder(6, 4), None, r"expected targets of shape \(views, columns\), got \(6,\); say which"),
        (ff.Autoencoder(6, 4), [slice(0, 3), slice(3, 7)], "each a slice of the 6 columns"),
        (ff.Autoencoder(6, 4), [], "expected views, each a slice"),
        (ff.Autoencoder((2, 3), 4, "sigmoid", network={"name": "mlp", "hidden": [5]}), None, "linear decoder"),
    ],
    ids=["flat", "beyond", "none", "deep"],
)
def test_shares_are_refused_where_nothing_says_what_the_views_are(model, said, sentence):
    with pytest.raises(ValueError, match=sentence):
        ff.view_shares(model, said)


def test_a_crosscoder_is_saved_whole_and_encodes_a_row_as_in_a_batch(crosscoder, tmp_path):
    model, source = crosscoder
    ff.save(model, tmp_path / "model")
    loaded = ff.load(tmp_path / "model")
    x = next(source.batches(130)).x
    assert (loaded.input_shape, loaded.target_shape, loaded.layout) == ((2, 24), (2, 24), source.layout)
    assert torch.equal(loaded.reconstruct(x), model.reconstruct(x))
    together = model.encode(x)
    for i in (0, 63, 64, 129):
        assert torch.equal(model.encode(x[i : i + 1])[0], together[i])


def test_a_crosscoder_from_files_and_back(folder, fewfire):
    fewfire("train", "in.npy", "--set", "data.options.views=[same.npy]", "--out", "run", *FAST)
    run = runs.open_run(folder / "run")
    assert run.model.input_shape == (2, D)
    assert run.model.layout.columns[D] == "same:0"
    assert run.config.data.options["views"] == [str(folder / "same.npy")]
    found = json.loads(fewfire("evaluate", "run", "--json"))
    both = np.stack([np.load("in.npy"), np.load("same.npy")], axis=1)
    assert found == pytest.approx(ff.evaluate(run.model, both), rel=1e-6)
    fewfire("report", "run")
    page = (folder / "run" / "report.html").read_text()
    assert "same:" in page
    assert "2 × 16 values" in page
    before = run.model
    fewfire("train", "in.npy", "--out", "run", "--resume")
    assert same_weights(before, runs.open_run(folder / "run").model)
    fewfire("encode", "run", "in.npy", "--out", "own.npy")
    for name in ("in", "same"):
        np.save(f"{name}2.npy", np.load(f"{name}.npy"))
    fewfire("encode", "run", "in2.npy", "--set", "data.options.views=[same2.npy]", "--out", "others.npy")
    assert np.array_equal(np.load("own.npy"), np.load("others.npy")), "files of other names are the same views"
    np.save("both.npy", both)
    fewfire("encode", "run", "both.npy", "--out", "one.npy")
    assert np.array_equal(np.load("own.npy"), np.load("one.npy")), "a file (n, V, D) is views as it stands"
    with pytest.raises(ValueError, match=r"shape \(2, 16\), in2.npy are rows of shape \(16,\); name the other views"):
        fewfire("encode", "run", "in2.npy", "--out", "z.npy")


def test_views_of_several_widths_train_from_files_too(folder, fewfire):
    fewfire("train", "in.npy", "--set", "data.options.views=[out.npy]", "--out", "run", *FAST)
    run = runs.open_run(folder / "run")
    shares = ff.view_shares(run.model, run.source().views).shares
    assert shares.shape == (run.model.n_latents, 2)
    fewfire("score", "run", "in.npy", "--out", "s.csv")
    assert "out:" in (folder / "s.csv").read_text()


def test_a_transcoder_may_read_views(folder):
    source = open_source("in.npy", views=["same.npy"], view_names=["a", "b"], target="out.npy")
    assert (source.row_shape, source.target_shape) == ((2, D), (D_OUT,))
    assert source.layout.columns[-1] == "b:15"
