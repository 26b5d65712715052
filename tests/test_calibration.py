"""How many latents fire: moved after training, and for dead latents within it. Where dictionaries start."""

import numpy as np
import pandas as pd
import pytest
import torch

import fewfire as ff
from fewfire.calibration import lift_dead
from fewfire.trainer.starting import geometric_median, start_dictionary


def rows(n=3000, d=20, seed=0):
    random = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(30, d))
    weights = random.exponential(size=(n, 30)) * (random.random((n, 30)) < 0.15)
    return (weights @ directions + 5).astype(np.float32)


def trained(activation, n_latents=40, steps=150):
    model = ff.Autoencoder(20, n_latents, activation, preprocess="center")
    settings = ff.TrainConfig(steps=steps, batch_size=128, checkpoint_every=0)
    terms = [ff.MSE(), *(t for t in model.activation.default_terms() if not isinstance(t, ff.WeightDecay))]
    ff.Trainer(model, rows(), terms, settings, progress=False).fit()
    return model


# ------------------------------------------------------------------------------------------- calibrate


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("target", [2, 4.5, 9])
@pytest.mark.parametrize("activation", ["batchtopk", "jumprelu", "gated", "relu"])
def test_a_threshold_moves_to_what_was_asked_for(activation, target):
    model = trained(activation)
    assert ff.calibrate(model, rows(), target) == pytest.approx(target, rel=0.01)
    assert ff.evaluate(model, rows())["l0"] == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize("activation", ["topk", "matching_pursuit"])
def test_k_is_set(activation, tmp_path):
    model = trained(activation, steps=20)
    ff.calibrate(model, rows(), 5.2)
    assert model.activation.k == 5
    ff.save(model, tmp_path)
    assert ff.load(tmp_path).activation.k == 5


def test_what_is_calibrated_is_saved(tmp_path):
    model = trained("jumprelu")
    ff.calibrate(model, rows(), 3)
    ff.save(model, tmp_path)
    assert torch.equal(ff.load(tmp_path).encode(rows()), model.encode(rows()))


def test_an_estimator_is_calibrated_in_place():
    sae = ff.SparseAutoencoder(30, activation="jumprelu", max_epochs=2, random_state=0).fit(rows())
    ff.calibrate(sae, rows(), 4)
    assert (sae.transform(rows()) != 0).sum(1).mean() == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("activation", "target", "words"),
    [
        ("sigmoid", 4, "has no threshold and no k to move"),
        ("wta", 4, "has no threshold and no k to move"),
        ("jumprelu", 0, "expected target_l0 above 0 and below 40"),
        ("jumprelu", 41, "expected target_l0 above 0 and below 40"),
        ("jumprelu", 39, "latents per row can fire, 39 were asked for"),
    ],
)
def test_refusals(activation, target, words):
    model = ff.Autoencoder(20, 40, activation)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        ff.calibrate(model, rows() - 5, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rows_that_are_not_finite_are_refused():
    bad = rows()
    bad[17, 3] = np.nan
    with pytest.raises(ValueError, match="row 17"):
        ff.calibrate(ff.Autoencoder(20, 40, "jumprelu"), bad, 4)


# ------------------------------------------------------------------------------------------- the dead


def test_biases_of_the_dead_rise_and_no_others():
    model = ff.Autoencoder(20, 40, "topk")
    dead = torch.zeros(40, dtype=torch.bool)
    dead[[3, 7]] = True
    lift_dead(model, dead, 1e-3)
    moved = model.encoder.b_enc.detach() != 0
    assert torch.equal(moved, dead)
    assert (model.encoder.b_enc[dead] > 0).all()


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_rows_near_a_subspace_leave_none_dead():
    """What is left over there is noise, and latents that learn it alone never win again."""
    random = np.random.default_rng(0)
    data = random.normal(size=(8000, 4)) @ random.normal(size=(4, 24)) + 0.02 * random.normal(size=(8000, 24))

    def dead(revived):
        model = ff.Autoencoder(24, 256, ff.TopK(k=8), preprocess="standardize")
        settings = ff.TrainConfig(steps=600, batch_size=128, checkpoint_every=0)
        trainer = ff.Trainer(model, data.astype(np.float32), None, settings, progress=False)
        trainer.lifts = revived
        trainer.fit()
        return trainer.summary["dead_fraction"]

    assert dead(True) < 0.5 * dead(False)


# ------------------------------------------------------------------------------------------- the start


def test_the_geometric_median_has_the_least_sum_of_distances():
    x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:30] += 100  # outliers, which draw the mean 15 away
    median = geometric_median(x)

    def cost(point):
        return (x - point).norm(dim=1).sum()

    for direction in torch.randn(20, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64):
        assert cost(median) <= cost(median + 0.02 * direction) + 1e-6
    assert median.norm() < 1 < x.mean(0).norm()


@pytest.mark.parametrize("x", [torch.ones(5, 3), torch.tensor([[0.0, 1.0]]), torch.full((4, 2), 1e30)])
def test_the_median_of_rows_all_alike(x):
    assert torch.equal(geometric_median(x), x[0])


def test_a_dictionary_starts_from_it_and_one_that_was_trained_does_not():
    x = torch.as_tensor(rows())
    model = ff.Autoencoder(20, 40, "topk")
    start_dictionary(model, x, x)
    assert torch.allclose(model.decoder.b_dec, geometric_median(x))
    assert torch.allclose(model.encoder(model.decoder.b_dec[None]), torch.zeros(1, 40), atol=1e-4)
    before = model.decoder.b_dec.clone()
    start_dictionary(model, x + 3, x + 3)
    assert torch.equal(model.decoder.b_dec, before)


def test_a_source_without_end_is_prepared_for():
    world = ff.SyntheticWorld.independent(32, 16)
    model = ff.Autoencoder(16, 32, preprocess="standardize")
    settings = ff.TrainConfig(steps=5, checkpoint_every=0)
    trainer = ff.Trainer(model, world, None, settings, validation=world.fresh(500), progress=False)
    trainer.fit()
    assert model.preprocess.fitted


# ------------------------------------------------------------------------------------------- what a reader found


def fvu(model, data):
    return ff.evaluate(model, data)["fvu"]


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_the_curvature_of_lbfgs_is_left_alone():
    sae = ff.SparseAutoencoder(
        64, activation="topk", k=2, optimizer="lbfgs", max_epochs=40, random_state=0, preprocess="standardize"
    )
    assert sae.fit(rows(300)).score(rows(300)) > 0.3


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "gated", "sigmoid"])
def test_a_model_that_is_trained_further_keeps_what_it_learned(activation):
    def fit(steps, rate):
        settings = ff.TrainConfig(steps=steps, learning_rate=rate, target_l0=4, checkpoint_every=0)
        ff.Trainer(model, rows(), None, settings, progress=False).fit()
        return fvu(model, rows())

    model = ff.Autoencoder(20, 40, activation, preprocess="standardize")
    before = fit(400, 3e-3)
    assert fit(1, 0.0) == pytest.approx(before, rel=0.1)


@pytest.mark.parametrize("points", [[(0, 64), (1, 64)], [(0, 4), (1, 0)], [(0, 4), (1, -3)]])
@pytest.mark.parametrize("activation", ["topk", "batchtopk", "matching_pursuit"])
def test_a_k_that_could_not_be_loaded_is_refused_before_training(activation, points):
    if activation == "matching_pursuit" and points[-1][1] == 64:
        return  # 64 rounds over 32 latents are possible
    model = ff.Autoencoder(20, 32, {"name": activation, "k": 4})
    with pytest.raises(ValueError, match=r"schedule 'activation\.k': k is"):
        ff.Trainer(model, rows(), config=ff.TrainConfig(steps=3, schedules={"activation.k": points}), progress=False)


def test_calibrated_k_can_be_loaded(tmp_path):
    model = ff.Autoencoder(20, 32, ff.TopK(k=4, alpha=0.5))
    ff.calibrate(model, rows(), 20)
    ff.save(model, tmp_path)
    assert ff.load(tmp_path).activation.k == 32


def test_other_columns_are_no_rows_to_calibrate_on():
    table = pd.DataFrame(rows(200), columns=[f"c{i}" for i in range(20)])
    sae = ff.SparseAutoencoder(30, activation="jumprelu", max_epochs=1, random_state=0).fit(table)
    with pytest.raises(ValueError, match="another order"):
        ff.calibrate(sae, table[table.columns[::-1]], 3)
    with pytest.raises(ValueError, match=r"expected rows of shape \(20,\), got \(8,\)"):
        ff.calibrate(sae.module_, rows()[:, :8], 3)


def test_thresholds_of_a_feature_map_are_for_all_its_places():
    pictures = np.random.default_rng(0).random((200, 8, 8)).astype(np.float32)
    network = {"name": "conv", "channels": [], "kernel": 3, "latents": "maps"}
    model = ff.Autoencoder((8, 8), 4, "jumprelu", network=network)
    places = int(np.prod(model.latent_shape))
    assert ff.calibrate(model, pictures, places / 6) == pytest.approx(places / 6, rel=0.02)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_thresholds_start_from_the_data_in_every_precision():
    found = {}
    for dtype in ("float32", "float64"):
        model = ff.Autoencoder(20, 64, "jumprelu")
        ff.Trainer(model, 10 * rows(), config=ff.TrainConfig(steps=1, dtype=dtype), progress=False).fit()
        found[dtype] = float(model.activation.threshold.detach().mean())
    assert found["float64"] == pytest.approx(found["float32"], rel=1e-3)
    assert found["float32"] > 1


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
def test_a_target_is_for_the_whole_not_for_layers_that_are_pretrained():
    model = ff.Autoencoder(20, 32, "jumprelu", network={"name": "mlp", "hidden": [24]}, preprocess="standardize")
    settings = ff.TrainConfig(steps=200, pretrain_steps=30, target_l0=4, learning_rate=3e-3, checkpoint_every=0)
    ff.Trainer(model, rows(), config=settings, progress=False).fit()
    assert ff.evaluate(model, rows())["l0"] == pytest.approx(4, rel=0.25)


def test_a_decoder_behind_a_logistic_function_is_left_to_learn_its_middle():
    network = {"name": "linear", "output": "sigmoid", "unit_norm": True}
    model = ff.Autoencoder(20, 32, "topk", network=network)
    x = torch.as_tensor(rows(50)).sigmoid()
    start_dictionary(model, x, x)
    assert not model.decoder.b_dec.any()


def test_the_share_of_all_latents_is_all_latents():
    assert ff.MatryoshkaMSE(prefixes=(0.25, 0.5, 1.0)).sizes(64) == [16, 32, 64]
    assert ff.MatryoshkaMSE(prefixes=(1,)).sizes(64) == [1, 64]


@pytest.mark.parametrize("prefixes", [(2.7, 10.9), ("a",), (float("inf"),), (True,), 1.5])
def test_a_prefix_is_a_whole_number_or_a_share(prefixes):
    with pytest.raises(ValueError, match="rising numbers above 0, whole ones or shares"):
        ff.MatryoshkaMSE(prefixes=prefixes)


@pytest.mark.parametrize("steps", [1, 50, 200, 800])
def test_batchtopk_fires_k_on_new_rows_however_short_training_was(steps):
    """An average over batches lags behind weights that move: after 200 steps here, a fifth too few fired."""
    model = ff.Autoencoder(20, 64, ff.BatchTopK(k=6), preprocess="center")
    ff.Trainer(model, rows(), config=ff.TrainConfig(steps=steps, batch_size=128), progress=False).fit()
    fresh = rows(seed=0, n=6000)[3000:]
    assert (model.encode(fresh) != 0).sum(1).float().mean() == pytest.approx(6, rel=0.05)


def test_batchtopk_of_a_k_that_falls_to_the_end_fires_its_last():
    model = ff.Autoencoder(20, 64, ff.BatchTopK(k=4), preprocess="center")
    config = ff.TrainConfig(steps=150, batch_size=128, schedules={"activation.k": [(0, 16), (1, 4)]})
    ff.Trainer(model, rows(), config=config, progress=False).fit()
    assert (model.encode(rows()) != 0).sum(1).float().mean() == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize("patience", [None, 2])
def test_a_threshold_is_settled_again_to_the_same_bits(tmp_path, patience):
    """Killed between the last checkpoint and the end, or resumed when all is done."""

    def run(folder, resume):
        model = ff.Autoencoder(20, 64, ff.BatchTopK(k=6), preprocess="center")
        kept = {"validation_fraction": 0.2, "validate_every": 10, "patience": patience} if patience else {}
        config = ff.TrainConfig(steps=60, batch_size=128, learning_rate=0.02, checkpoint_every=25, **kept)
        ff.Trainer(model, rows(), config=config, folder=folder, progress=False).fit(resume=resume)
        return model.state_dict()

    first, again = run(tmp_path, False), run(tmp_path, True)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_in_a_stream_of_few_rows_the_average_decides():
    data = rows()
    sae = ff.SparseAutoencoder(n_components=64, activation="batchtopk", k=6, random_state=0)
    for part in np.array_split(data, 300):
        sae.partial_fit(part)
    assert (sae.transform(data) != 0).sum(1).mean() == pytest.approx(6, rel=0.1)
