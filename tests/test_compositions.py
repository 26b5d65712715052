"""Every activation in every network, with every corruption and penalty: it trains, or is refused with a reason."""

import copy
import math
import re

import numpy as np
import pytest
import torch

import fewfire as ff

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")

SETTINGS = {
    "topk": {"k": 4},
    "batchtopk": {"k": 3.5},
    "matching_pursuit": {"k": 3},
    "wta": {"rate": 0.2},
    "plain": {"function": "tanh"},
}


def members(family):
    """Without those that other test files add."""
    return {name: member for name, member in family.registry.items() if member.__module__.startswith("fewfire.")}


NETWORKS = {
    "linear": {"name": "linear"},
    "tied": {"name": "linear", "tied": True},
    "deep": {"name": "mlp", "hidden": [10], "hidden_activation": "elu"},
    "deep, tied": {"name": "mlp", "hidden": [10], "hidden_activation": "tanh", "tied": True},
    "logistic": {"name": "linear", "output": "sigmoid"},
    "convolutional": {"name": "conv", "channels": [6], "kernel": 3, "hidden_activation": "elu"},
    "maps": {
        "name": "conv",
        "channels": [6],
        "kernel": 3,
        "stride": [2, 1],
        "latents": "maps",
        "hidden_activation": "elu",
    },
}
# a term beside the loss, at a weight at which it does not hide whether the loss falls
VARIANTS = {
    "usual": None,
    **{name: ff.Corruption.from_config(name) for name in members(ff.Corruption)},
    "kl": ff.KLSparsity(weight=0.1),
    "l1": ff.L1(weight=0.02),
    "contractive": ff.Contractive(weight=0.02),
    "gaussian_kl": ff.GaussianKL(weight=0.1),
    "auxk": ff.AuxK(),
    "l0_penalty": ff.L0Penalty(weight=0.01),
    "matryoshka_mse": ff.MatryoshkaMSE(weight=0.5),
    "gated_aux": ff.GatedAux(weight=0.5),
    "target_l0": 5.0,  # latents, to which the activation's own penalty is steered
}
CASES = [
    pytest.param(activation, network, variant, id=f"{activation}-{network}-{variant}")
    for activation in members(ff.Activation)
    for network in NETWORKS
    for variant in VARIANTS
]


def rows():
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(8, 12))
    weights = generator.exponential(size=(160, 8)) * (generator.random((160, 8)) < 0.3)
    return (weights @ directions + 0.05 * generator.normal(size=(160, 12))).astype(np.float32)


def trainer(activation, network, variant, folder, steps=60):
    settings = NETWORKS[network]
    is_conv = settings["name"] == "conv"
    made = ff.Autoencoder(
        (1, 3, 4) if is_conv else 12,
        16,
        {"name": activation, **SETTINGS.get(activation, {})},
        network=settings,
        preprocess={"name": "minmax", "per_column": False} if network == "logistic" else "center",
    )
    extra = copy.deepcopy(VARIANTS[variant])
    loss = ff.BCE() if network == "logistic" else ff.MSE()
    terms = [loss, extra] if isinstance(extra, ff.Term) else None
    if terms is None and network == "logistic":
        terms = [loss, *(t for t in made.activation.default_terms() if t.needs <= made.gives)]
    return ff.Trainer(
        made,
        rows().reshape(-1, 1, 3, 4) if is_conv else rows(),
        terms,
        ff.TrainConfig(
            steps=steps,
            batch_size=40,
            learning_rate=5e-3,
            checkpoint_every=25,
            log_every=1,
            dead_after=200,  # five steps: AuxK is alive
            target_l0=extra if isinstance(extra, float) else None,
        ),
        corruption=extra if isinstance(extra, ff.Corruption) else None,
        folder=folder,
        progress=False,
    )


@pytest.mark.parametrize(("activation", "network", "variant"), CASES)
def test_it_trains_or_is_refused_with_a_reason(activation, network, variant, tmp_path):
    try:
        whole = trainer(activation, network, variant, tmp_path / "run")
    except ValueError as error:
        check_refusal(str(error), activation, network, variant)
        return
    before = {n: p.detach().clone() for n, p in whole.model.named_parameters()}
    label = next(iter(whole.terms)) if variant == "target_l0" else "loss"  # steering changes the penalty's weight
    losses = [record[label] for record in whole.fit() if label in record]
    assert all(map(math.isfinite, losses))
    floor = 0.99 if network == "logistic" else 0.97  # cross-entropy never gets below the entropy of the rows
    assert np.mean(losses[-8:]) < floor * np.mean(losses[:4])
    for name, parameter in whole.model.named_parameters():
        assert not torch.equal(parameter, before[name]), f"no gradient reached {name}"

    (tmp_path / "run" / "checkpoints" / "step-000000060.safetensors").unlink()
    resumed = trainer(activation, network, variant, tmp_path / "run")
    resumed.fit(resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name

    ff.save(whole.model, tmp_path / "model")
    loaded = ff.load(tmp_path / "model")
    x = torch.from_numpy(rows()).view(-1, *whole.model.input_shape)
    assert torch.equal(loaded.encode(x), whole.model.encode(x))
    assert torch.equal(loaded.reconstruct(x), whole.model.reconstruct(x))


def check_refusal(message, activation, network, variant):
    """Only for what cannot be, and in words that name both sides."""
    if "tied" in network and members(ff.Activation)[activation].n_pre > 1:
        assert "tied weights need one pre-activation per latent" in message
        return
    term = VARIANTS[variant]
    if "residual" in members(ff.Activation)[activation].needs and network == "logistic":
        assert "needs residual" in message and "got sigmoid" in message
        return
    if isinstance(term, float):
        assert re.search(rf"target_l0=5 (steers|moves) .*'{activation}'", message), message
        return
    assert isinstance(term, ff.Term), message
    assert re.search(rf"{term.name}.*needs|needs.*{term.name}", message), message
    assert activation in message or "network" in message or "decoder" in message, message


def test_most_of_them_do_train(tmp_path):
    """A list of what is refused, so that it does not grow unseen."""
    refused = set()
    for case in CASES:
        try:
            trainer(*case.values, None, steps=1)
        except ValueError:
            refused.add(case.values)
    variants = {name: {(a, n) for a, n, v in refused if v == name} for name in VARIANTS}
    never = {("gaussian", "tied"), ("gaussian", "deep, tied"), ("matching_pursuit", "logistic")}
    assert variants["usual"] == variants["l1"] == variants["contractive"] == never
    for name in members(ff.Corruption):
        assert variants[name] == never
    units = {a for a, n in variants["kl"] if n == "linear"}
    assert units == set(members(ff.Activation)) - {"sigmoid", "gaussian"}
    for name, only in {
        "gaussian_kl": {"gaussian"},
        "l0_penalty": {"jumprelu"},
        "gated_aux": {"gated"},
        "target_l0": {"sigmoid", "relu", "jumprelu", "gated"},
    }.items():
        assert {a for a, n in variants[name] if n == "linear"} == set(members(ff.Activation)) - only
    for activation in ("sigmoid", "relu", "jumprelu", "gated"):
        assert not [n for a, n in variants["target_l0"] if a == activation]
    assert {n for a, n in variants["matryoshka_mse"] if a == "topk"} == set(NETWORKS) - {"linear", "tied"}
