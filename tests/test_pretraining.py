"""Greedy layer-wise pretraining of deep and convolutional networks."""

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.trainer.before import fit_preprocess
from fewfire.trainer.pretraining import pretrain

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")

NETWORKS = {
    "deep": {"name": "mlp", "hidden": [24, 12], "hidden_activation": "tanh"},
    "tied": {"name": "mlp", "hidden": [24, 12], "hidden_activation": "sigmoid", "tied": True},
    "logistic": {"name": "mlp", "hidden": [24], "output": "sigmoid"},
    "vector": {"name": "conv", "channels": [6, 8], "kernel": 3},
    "maps": {"name": "conv", "channels": [6], "kernel": 3, "latents": "maps"},
}


def trainer(network, steps=1, folder=None, activation="topk", terms=None, corruption=None, **settings):
    source = ff.digits()
    model = ff.Autoencoder(
        64,
        16,
        {"name": activation, "k": 4} if activation == "topk" else activation,
        network=NETWORKS[network],
        layout=source.layout,
        preprocess="minmax" if network == "logistic" else "center",
    )
    config = ff.TrainConfig(**{"steps": steps, "batch_size": 100, "learning_rate": 3e-3, **settings})
    return ff.Trainer(model, source, terms, config, folder=folder, corruption=corruption, progress=False)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_layer_learns_and_the_whole_begins_better(network):
    def loss_of_first_step(pretrain_steps):
        made = trainer(network, pretrain_steps=pretrain_steps, log_every=1)
        before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
        loss = next(record["loss"] for record in made.fit() if "loss" in record)
        return loss, made.model, before

    cold, _, _ = loss_of_first_step(0)
    warm, model, before = loss_of_first_step(100)
    assert warm < 0.9 * cold
    for name, parameter in model.named_parameters():
        assert (parameter - before[name]).abs().max() > 5e-3, f"{name}: one step of 0.003 moves it by less"


@pytest.mark.parametrize(("network", "between"), [("deep", torch.tanh), ("tied", torch.sigmoid)])
def test_a_stage_rebuilds_what_comes_to_its_layer(network, between):
    """By hand: the second layer, given what the first makes of the rows, and rebuilt as the whole decoder does."""
    made = trainer(network, pretrain_steps=200)
    fit_preprocess(made)
    pretrain(made)
    model = made.model
    x = model.to_model_space(torch.as_tensor(next(made.source.batches(1797)).x_in)).float()
    with torch.no_grad():
        first = between(model.encoder.layers[0](x))
        second = between(model.encoder.layers[1](first))
        for given, rebuilt in [
            (x, model.decoder.layers[2](first)),
            (first, between(model.decoder.layers[1](second))),
            (second, between(model.decoder.layers[0](model.activation(model.encoder.layers[2](second))))),
        ]:
            left = (rebuilt - given).square().sum() / (given - given.mean(0)).square().sum()
            assert left < 0.75


def test_stages_get_the_corruption_and_the_top_its_terms(monkeypatch):
    seen = []
    fit = ff.Trainer.fit

    def spy(self, **more):
        seen.append((self.config.steps, sorted(self.terms), self.corruption, self.model.activation.name))
        return fit(self, **more)

    monkeypatch.setattr(ff.Trainer, "fit", spy)
    noise = ff.Masking(0.2)
    terms = [ff.BCE(), ff.KLSparsity(), ff.WeightDecay()]
    trainer("logistic", 3, activation="sigmoid", terms=terms, corruption=noise, pretrain_steps=2).fit()
    assert seen == [
        (3, ["bce", "kl", "weight_decay"], noise, "sigmoid"),
        (2, ["bce"], noise, "plain"),
        (2, ["kl", "mse", "weight_decay"], noise, "sigmoid"),
    ]


def test_resumed_bit_for_bit(tmp_path):
    whole = trainer("deep", 20, pretrain_steps=10)
    whole.fit()
    first = trainer("deep", 20, tmp_path, pretrain_steps=10, checkpoint_every=8)
    first.fit()
    (tmp_path / "checkpoints" / "step-000000020.safetensors").unlink()
    resumed = trainer("deep", 20, tmp_path, pretrain_steps=10, checkpoint_every=8)
    resumed.fit(resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_terms_see_a_layer_that_slides_for_what_it_is():
    """Contractive has a closed form for one matrix, and a convolution is none."""
    terms = [ff.MSE(), ff.Contractive()]
    history = trainer("maps", 2, activation="sigmoid", terms=terms, pretrain_steps=2, log_every=1).fit()
    assert np.isfinite([record["loss"] for record in history if "loss" in record]).all()


def test_what_has_no_layers_is_refused():
    rows = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    config = ff.TrainConfig(steps=2, pretrain_steps=2)
    with pytest.raises(ValueError, match="expected hidden layers, got network 'linear'; leave pretrain_steps out"):
        ff.Trainer(ff.Autoencoder(6, 8, "relu"), rows, config=config)
    one_filter = {"name": "conv", "channels": [4], "kernel": 3, "latents": "maps", "decoder_kernel": 5}
    with pytest.raises(ValueError, match="a decoder that mirrors the encoder"):
        ff.Trainer(ff.Autoencoder((1, 8, 8), 4, "wta", network=one_filter), np.zeros((9, 1, 8, 8)), config=config)
    other = ff.Autoencoder(6, 8, "relu", network={"name": "mlp", "hidden": [7]}, d_out=3)
    with pytest.raises(ValueError, match="rows that are their own targets"):
        ff.Trainer(other, ff.ArraySource(rows, rows[:, :3]), config=config)
