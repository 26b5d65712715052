"""Every term against its formula in numpy, and what is said when one cannot work or did not."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.terms import Term

OURS = [n for n, t in Term.registry.items() if t.__module__.startswith("fewfire")]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make(activation="topk", width=5, n_latents=8, **settings):
    return ff.Autoencoder(width, n_latents, activation, dtype=torch.float64, **settings)


def state(n_latents=8, dead=(), dead_after=1000):
    since = torch.zeros(n_latents, dtype=torch.int64)
    since[list(dead)] = dead_after
    return TrainState(step=1, samples=1, since_fired=since, lr=1e-3, dead_after=dead_after)


def arrays(model):
    return {n.split(".")[1]: p.detach().numpy() for n, p in model.named_parameters()}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


# ------------------------------------------------------------------------------------------- formulas


def mse(model, out, term):
    return sum(float(((r - x) ** 2).sum()) for r, x in zip(out.recon, out.x, strict=True)) / len(out.x)


def bce(model, out, term):
    x, x_hat = out.x.numpy(), sigmoid(out.recon_logits.numpy())
    return -(x * np.log(x_hat) + (1 - x) * np.log(1 - x_hat)).sum(axis=1).mean()


def kl(model, out, term):
    rho, rho_hat = term.rho, sigmoid(out.pre_acts.numpy()).mean(axis=0)
    return sum(rho * math.log(rho / r) + (1 - rho) * math.log((1 - rho) / (1 - r)) for r in rho_hat)


def l1(model, out, term):
    sizes = np.abs(out.latents.numpy())
    norms = np.sqrt((arrays(model)["W_dec"] ** 2).sum(axis=1)) if term.by_decoder_norm else 1
    return (sizes * norms).sum(axis=1).mean()


def matryoshka_mse(model, out, term):
    """Each prefix by itself, from its own latents."""
    z, W_dec, b_dec = out.latents.numpy(), arrays(model)["W_dec"], arrays(model)["b_dec"]
    n_latents = z.shape[1]
    sizes = {n_latents} | {max(1, round(p * n_latents)) if p < 1 else p for p in term.prefixes}
    errors = [((z[:, :n] @ W_dec[:n] + b_dec - out.x.numpy()) ** 2).sum(axis=1).mean() for n in sizes]
    return sum(errors) / len(errors)


def l0_penalty(model, out, term):
    n_active = (out.pre_acts.numpy() > arrays(model)["threshold"]).sum(axis=1).mean()
    return n_active if term.target is None else (n_active / term.target - 1) ** 2


def gated_aux(model, out, term):
    gates = np.maximum(out.pre_acts.numpy() - model.activation.threshold.numpy(), 0)
    recon = gates @ arrays(model).get("W_dec", arrays(model)["W_enc"]) + arrays(model)["b_dec"]
    return ((out.x.numpy() - recon) ** 2).sum(axis=1).mean()


def auxk(model, out, term):
    """Row by row, with dead latents 1, 3, 4, 6 (the state that the test gives)."""
    W_dec, dead = arrays(model)["W_dec"], [1, 3, 4, 6]
    total = 0.0
    for x, recon, z in zip(out.x.numpy(), out.recon.numpy(), out.pre_acts.numpy(), strict=True):
        best = sorted(dead, key=lambda j: -z[j])[: term.k_aux or len(x) // 2]
        estimate = sum(max(z[j], 0) * W_dec[j] for j in best)
        total += ((x - recon - estimate) ** 2).sum()
    return total / len(out.x)


def weight_decay(model, out, term):
    return sum((a**2).sum() for n, a in arrays(model).items() if n.startswith("W")) / 2


def gaussian_kl(model, out, term):
    mean, logvar = np.split(out.pre_acts.numpy(), 2, axis=1)
    each = (mean**2 + np.exp(logvar) - 1 - logvar) / 2
    return sum(max(latent.mean(), term.free_bits) for latent in each.T)


def orthogonality(model, out, term):
    """Pair by pair."""
    rows = [row / np.sqrt((row**2).sum()) for row in arrays(model)["W_dec"]]
    pairs = [(rows[i] @ rows[j]) ** 2 for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return sum(pairs) / len(rows)


def contractive(model, out, term):
    """Row by row, by finite differences of the latents at inference."""
    total, step = 0.0, 1e-6
    for x in out.x_in:
        for d in range(len(x)):
            e = torch.zeros_like(x)
            e[d] = step
            difference = model(torch.stack([x + e, x - e])).latents.detach().numpy()
            total += (((difference[0] - difference[1]) / (2 * step)) ** 2).sum()
    return total / len(out.x_in)


FORMULAS = {
    "mse": mse,
    "bce": bce,
    "kl": kl,
    "l1": l1,
    "matryoshka_mse": matryoshka_mse,
    "l0_penalty": l0_penalty,
    "gated_aux": gated_aux,
    "auxk": auxk,
    "weight_decay": weight_decay,
    "gaussian_kl": gaussian_kl,
    "contractive": contractive,
    "orthogonality": orthogonality,
}

SETTINGS = [
    ("mse", {}, "topk", {}),
    ("mse", {}, "relu", {"network": {"name": "linear", "tied": True}}),
    ("bce", {}, "sigmoid", {"network": {"name": "linear", "output": "sigmoid"}}),
    ("bce", {}, "topk", {"network": {"name": "linear", "output": "sigmoid"}}),
    ("kl", {}, "sigmoid", {}),
    ("kl", {"rho": 0.3}, "sigmoid", {"network": {"name": "linear", "tied": True}}),
    ("l1", {}, "relu", {}),
    ("l1", {}, "sigmoid", {}),
    ("l1", {"by_decoder_norm": True}, "sigmoid", {}),
    ("matryoshka_mse", {}, "topk", {}),
    ("matryoshka_mse", {"prefixes": [1, 3, 7]}, "relu", {}),
    ("matryoshka_mse", {"prefixes": [0.25, 0.5]}, "batchtopk", {}),
    ("matryoshka_mse", {"prefixes": [2, 8]}, "sigmoid", {}),
    ("matryoshka_mse", {"prefixes": []}, "topk", {}),
    ("l0_penalty", {}, "jumprelu", {}),
    ("l0_penalty", {"target": 2.5}, "jumprelu", {}),
    ("gated_aux", {}, "gated", {}),
    ("gated_aux", {}, "gated", {"network": {"name": "linear", "tied": True}}),
    ("auxk", {}, "topk", {}),
    ("auxk", {"k_aux": 1}, "topk", {}),
    ("auxk", {"k_aux": 4}, "relu", {}),
    ("auxk", {}, "batchtopk", {}),
    ("auxk", {}, "jumprelu", {}),
    ("auxk", {}, "gated", {}),
    ("auxk", {}, "matching_pursuit", {"network": {"name": "linear", "tied": False}}),
    ("weight_decay", {}, "sigmoid", {}),
    ("weight_decay", {}, "sigmoid", {"network": {"name": "linear", "tied": True}}),
    ("gaussian_kl", {}, "gaussian", {}),
    ("gaussian_kl", {"free_bits": 0.3}, "gaussian", {}),
    ("orthogonality", {}, "topk", {}),
    ("orthogonality", {}, "sigmoid", {}),
    ("contractive", {}, "sigmoid", {}),
    ("contractive", {}, "relu", {"network": {"name": "linear", "tied": True}}),
    ("contractive", {"method": "exact"}, "topk", {}),
    ("contractive", {"method": "exact"}, "gaussian", {}),
    ("contractive", {}, "jumprelu", {}),
    ("contractive", {}, "gated", {}),
    ("contractive", {}, "batchtopk", {}),
    ("contractive", {"method": "exact"}, "matching_pursuit", {}),
    ("contractive", {"method": "exact"}, "sigmoid", {"network": {"name": "mlp", "hidden": [6, 7]}}),
]
ROUNDING = {"contractive": 1e-7}
"""relative error of the formula itself, where it is a finite difference"""


def test_every_term_is_in_these_tests():
    assert set(FORMULAS) == set(OURS) == {name for name, *_ in SETTINGS}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "settings", "activation", "model_settings"), SETTINGS, ids=str)
def test_formula(name, settings, activation, model_settings, seed):
    term = Term.from_config({"name": name, **settings})
    model = make(activation, **model_settings)
    with torch.no_grad():
        for i, p in enumerate(p for p in model.parameters() if p.ndim == 1):
            p.copy_(random(len(p), seed=seed + 10 * (i + 1)))
        x = random(7, 5, seed=seed).sigmoid() if name == "bce" else random(7, 5, seed=seed)
        now = state(dead=[1, 3, 4, 6])
        out = model(x, state=now)
        value = term(model, out, now)
    assert value.shape == ()
    assert value.dtype == torch.float64
    assert float(value) == pytest.approx(FORMULAS[name](model, out, term), rel=ROUNDING.get(name, 1e-12))


SUITS = {
    "kl": "sigmoid",
    "gaussian_kl": "gaussian",
    "contractive": "sigmoid",
    "l0_penalty": "jumprelu",
    "gated_aux": "gated",
}
"""an activation that gives what the term needs, where topk does not"""


@pytest.mark.parametrize("name", [n for n in OURS if n != "weight_decay"])
def test_a_term_does_not_depend_on_how_many_rows_say_the_same(name):
    """Sum over columns, mean over rows: a batch twice is the batch, and a column twice is twice the column."""
    output = "sigmoid" if name == "bce" else "identity"
    model = make(SUITS.get(name, "topk"), network={"name": "linear", "output": output})
    term, now, x = Term.from_config(name), state(dead=[1, 3, 4, 6]), random(7, 5).sigmoid()
    once, twice = (term(model, model(rows, state=now), now) for rows in (x, torch.cat([x, x])))
    assert float(once.detach()) == pytest.approx(float(twice.detach()), rel=1e-12)


@pytest.mark.parametrize("term", [ff.MSE(), ff.BCE()], ids=repr)
def test_columns_are_summed(term):
    x, logits = random(7, 5).sigmoid(), random(7, 5, seed=1)
    once = ForwardOutput(x, x, x, x, logits.sigmoid(), logits)
    twice = ForwardOutput(*(torch.cat([t, t], dim=1) for t in once[:-1]))
    assert float(term(None, twice)) == pytest.approx(2 * float(term(None, once)), rel=1e-12)


def test_targets_of_several_axes():
    """Views and channels are columns too."""
    x, recon = random(7, 2, 3), random(7, 2, 3, seed=1)
    flat, shaped = (ForwardOutput(a, a, a, a, b, b) for a, b in ((x.flatten(1), recon.flatten(1)), (x, recon)))
    for term in (ff.MSE(), ff.BCE()):
        assert torch.equal(term(None, flat), term(None, shaped))


def test_the_weight_is_left_to_the_engine():
    model, x = make(), random(7, 5)
    out = model(x)
    assert torch.equal(ff.MSE(weight=5)(model, out), ff.MSE()(model, out))


@pytest.mark.parametrize("name", OURS)
def test_config_round_trip(name):
    term = Term.from_config({"name": name, "weight": 0.125})
    assert Term.from_config(term.config()).config() == term.config()
    assert term.config()["weight"] == 0.125
    assert f"{type(term).__name__}(weight=0.125" in repr(term)


@pytest.mark.parametrize("name", OURS)
def test_outside_training_there_is_no_state(name):
    model = make(SUITS.get(name, "topk"), network={"name": "linear", "output": "identity"})
    value = Term.from_config(name)(model, model(random(7, 5).sigmoid()))
    assert value.isfinite()


# ------------------------------------------------------------------------------------------- cross-entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logit", [1e4, 300.0, 40.0])
def test_bce_where_the_output_rounds_to_0_or_1(logit, dtype):
    logits = torch.tensor([[logit, -logit]], dtype=dtype, requires_grad=True)
    x = torch.tensor([[0.0, 1.0]], dtype=dtype)
    value = ff.BCE()(None, ForwardOutput(x, x, x, x, logits.sigmoid(), logits))
    value.backward()
    assert float(value.detach()) == pytest.approx(2 * logit, rel=1e-6)
    assert torch.allclose(logits.grad, torch.tensor([[1.0, -1.0]], dtype=dtype))


# ------------------------------------------------------------------------------------------- AuxK


def auxk_of(dead, k_aux=None, n_latents=8, pre_acts=None):
    model = make("topk", n_latents=n_latents)
    now = state(n_latents, dead)
    out = model(random(7, 5), state=now)
    if pre_acts is not None:
        out = out._replace(pre_acts=pre_acts)
    return ff.AuxK(k_aux=k_aux)(model, out, now), model, out


def test_none_dead_costs_nothing():
    value, _, _ = auxk_of(dead=[])
    assert value.shape == ()
    assert value == 0
    assert not value.requires_grad


def test_none_dead_trains_all_the_same():
    config = ff.TrainConfig(steps=3, batch_size=7, dead_after=1000)
    trainer = ff.Trainer(ff.Autoencoder(5, 8), ff.ArraySource(random(7, 5)), [ff.AuxK()], config, progress=False)
    trainer.started = True
    before = {n: p.clone() for n, p in trainer.model.state_dict().items()}
    assert trainer.fit()[-2]["auxk"] == 0
    after = trainer.model.state_dict()  # unit rows rescaled to unit rows: the last bit may change
    assert all(torch.allclose(before[n], p, atol=1e-6) for n, p in after.items())


@pytest.mark.parametrize("k_aux", [None, 1, 8, 100])
def test_all_dead_and_more_wanted_than_there_are(k_aux):
    value, model, out = auxk_of(dead=range(8), k_aux=k_aux)
    z, W = out.pre_acts.detach(), model.decoder.W_dec.detach()
    k = min(k_aux or 2, 8)
    top = z.relu().topk(k, dim=1)
    estimate = torch.zeros_like(z).scatter(1, top.indices, top.values) @ W
    expected = (out.x - out.recon.detach() - estimate).square().sum(1).mean()
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-12)


def test_a_latent_is_dead_from_the_row_on_that_is_said():
    now = state(3)
    now.since_fired = torch.tensor([999, 1000, 1001])
    assert now.dead.tolist() == [False, True, True]


def test_dead_latents_that_are_negative_leave_the_residual_as_it_is():
    value, _, out = auxk_of(dead=[2, 3], pre_acts=torch.full((7, 8), -1.0, dtype=torch.float64))
    assert float(value.detach()) == pytest.approx(float((out.x - out.recon.detach()).square().sum(1).mean()))


def test_the_residual_is_held_constant():
    """Else the living would be pulled towards what the dead explain."""
    value, model, _ = auxk_of(dead=[2, 3])
    value.backward()
    living = [0, 1, 4, 5, 6, 7]
    assert (model.encoder.W_enc.grad[living] == 0).all()
    assert (model.decoder.W_dec.grad[living] == 0).all()
    assert model.decoder.b_dec.grad is None
    assert model.encoder.W_enc.grad[[2, 3]].abs().sum() > 0


def test_half_the_width_by_default():
    """Two of five columns: the paper's k_aux = d / 2."""
    default, two, three = (float(auxk_of(range(8), k)[0].detach()) for k in (None, 2, 3))
    assert default == two != three


@pytest.mark.parametrize("k_aux", [0, -1])
def test_k_aux_of_nothing_is_refused(k_aux):
    with pytest.raises(ValueError, match="k_aux"):
        ff.AuxK(k_aux=k_aux)


# ------------------------------------------------------------------------------------------- emphasis


@pytest.mark.parametrize("term", [ff.MSE, ff.BCE])
def test_what_the_corruption_did_not_choose_counts_less(term):
    """Whether it was changed says nothing: half of the chosen entries were 0 before they were masked."""
    x, logits = random(7, 5).sigmoid(), random(7, 5, seed=1)
    touched = random(7, 5, seed=2) > 0
    x[:, ::2] = 0
    x_in = x.where(~touched, 0.0)
    out = ForwardOutput(x, x_in, x, x, logits.sigmoid(), logits, touched)
    assert ((x_in == x) & touched).any()
    each = [term().error(out._replace(x=x[:, [i]], recon=out.recon[:, [i]], recon_logits=logits[:, [i]]), "none")
            for i in range(5)]  # fmt: skip
    error = torch.cat(each, dim=1)
    for intact in (0, 0.1, 1):
        expected = (error * error.new_tensor([intact, 1.0])[touched.long()]).sum() / 7
        assert float(term(intact=intact)(None, out)) == pytest.approx(float(expected), rel=1e-12)


def test_emphasis_needs_to_know_what_was_chosen():
    out = ForwardOutput(*[random(7, 5)] * 6)
    with pytest.raises(
        ValueError, match=r"expected out.chosen of the targets' shape \(7, 5\), got none; .*intact at 1"
    ):
        ff.MSE(intact=0)(None, out)
    with pytest.raises(ValueError, match=r"\(7, 5\), got shape \(7, 4\); .*leave intact at 1"):
        ff.MSE(intact=0)(None, out._replace(chosen=random(7, 4) > 0))
    with pytest.raises(ValueError, match="from 0 to 1, got 2"):
        ff.MSE(intact=2)


# ------------------------------------------------------------------------------------------- variational


def test_the_closed_form_is_what_sampling_gives():
    """E_q[log q(z) - log p(z)] over a million draws."""
    model = make("gaussian", width=3, n_latents=2)
    out = model(random(4, 3))
    mean, logvar = (t.detach() for t in model.activation.mean_logvar(out.pre_acts))
    noise = torch.randn(1_000_000, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = mean + (logvar / 2).exp() * noise
    sampled = (-(noise.square() + logvar) / 2 + z.square() / 2).sum(2).mean()
    assert float(ff.GaussianKL()(model, out).detach()) == pytest.approx(float(sampled), rel=5e-3)


def test_free_bits_leave_the_cheap_latents_alone():
    model = make("gaussian")
    out = model(random(7, 5) * 1e-3)  # all latents near the prior
    value = ff.GaussianKL(free_bits=0.5)(model, out)
    value.backward()
    assert float(value.detach()) == 8 * 0.5
    assert model.encoder.W_enc.grad.abs().sum() == 0


def test_near_the_prior_no_digits_are_lost():
    model = make("gaussian", width=1, n_latents=1).float()
    out = model(torch.zeros(1, 1))._replace(pre_acts=torch.tensor([[0.0, 1e-3]]))
    assert float(ff.GaussianKL()(model, out)) == pytest.approx(2.5e-7, rel=1e-3)  # logvar^2 / 4


# ------------------------------------------------------------------------------------------- contractive


def jacobian(model, x):
    """(B, L, D) by autograd, one row at a time."""
    return torch.stack([torch.func.jacrev(lambda row: model(row[None]).latents[0])(row) for row in x])


@pytest.mark.parametrize("network", [{"name": "linear"}, {"name": "mlp", "hidden": [6]}], ids=lambda n: n["name"])
@pytest.mark.parametrize("activation", ["sigmoid", "relu", "topk", "gaussian", "wta"])
def test_it_is_the_norm_of_autograds_jacobian(activation, network):
    model, x = make(activation, network=network), random(6, 5)
    expected = float(jacobian(model, x).square().sum((1, 2)).mean().detach())
    value = ff.Contractive(method="exact")(model, model(x))
    assert float(value.detach()) == pytest.approx(expected, rel=1e-10)
    estimate = ff.Contractive(method="hutchinson", probes=4000)(model, model(x))
    assert float(estimate.detach()) == pytest.approx(expected, rel=0.05)


def test_the_estimate_draws_anew_at_every_step_and_the_same_again():
    model, x = make("sigmoid"), random(6, 5)
    term, now = ff.Contractive(method="hutchinson"), state()
    first = float(term(model, model(x), now).detach())
    assert first == float(term(model, model(x), now).detach())
    now.step += 1
    assert first != float(term(model, model(x), now).detach())


def test_without_gradients_it_has_a_value_and_no_graph():
    model, x = make("topk"), random(6, 5)
    with torch.no_grad():
        assert not ff.Contractive()(model, model(x)).requires_grad


def test_contraction_flattens_the_encoder():
    x = random(200, 5).float()
    norms = []
    for weight in (0.0, 10.0):
        model = ff.Autoencoder(5, 8, "sigmoid")
        terms = [ff.MSE(), ff.Contractive(weight=weight)]
        ff.Trainer(model, x, terms, ff.TrainConfig(steps=300), progress=False).fit()
        norms.append(float(jacobian(model, x).square().sum((1, 2)).mean().detach()))
    assert norms[1] < norms[0] / 2


@pytest.mark.parametrize("settings", [{"method": "guess"}, {"probes": 0}])
def test_contractive_settings(settings):
    with pytest.raises(ValueError, match="expected"):
        ff.Contractive(**settings)


# ------------------------------------------------------------------------------------------- weight decay


def test_weight_decay_leaves_biases_alone():
    model = make("sigmoid")
    with torch.no_grad():
        model.encoder.b_enc.fill_(100)
        model.decoder.b_dec.fill_(100)
    ff.WeightDecay()(model, None).backward()
    assert model.encoder.b_enc.grad is None
    assert model.decoder.b_dec.grad is None
    assert torch.equal(model.encoder.W_enc.grad, model.encoder.W_enc.detach())


def test_weight_decay_counts_a_tied_weight_once():
    model = make("sigmoid", network={"name": "linear", "tied": True})
    value = float(ff.WeightDecay()(model, None).detach())
    assert value == pytest.approx(float(model.encoder.W_enc.detach().square().sum()) / 2, rel=1e-12)


def test_weight_decay_leaves_the_preprocess_alone():
    model = make("sigmoid", preprocess="whiten")
    before = float(ff.WeightDecay()(model, None).detach())
    model.preprocess.fit(lambda: [random(50, 5)])
    assert float(ff.WeightDecay()(model, None).detach()) == before


# ------------------------------------------------------------------------------------------- words

SUMMARY = {"mean_activation": 0.04, "explained_variance": 0.8, "l0": 3.0, "n_latents": 8, "n_positions": 8}


@pytest.mark.parametrize("name", OURS)
def test_nothing_to_say_when_all_is_well(name):
    assert Term.from_config(name).verdict(SUMMARY) is None


def test_a_latent_space_that_carries_nothing():
    words = ff.GaussianKL(weight=4).verdict({**SUMMARY, "explained_variance": 0.002})
    assert all(w in words for w in ("posterior collapse", "lower the weight of gaussian_kl (now 4)", "free_bits"))


def test_verdicts():
    words = ff.KLSparsity(weight=0.5, rho=0.01).verdict({**SUMMARY, "mean_activation": 0.3})
    assert all(w in words for w in ("mean activation 0.3", "rho 0.01", "raise its weight (now 0.5)"))
    words = ff.L1(weight=0.25).verdict({**SUMMARY, "l0": 7.5})
    assert all(w in words for w in ("7.5 of 8", "raise its weight (now 0.25)"))


@pytest.mark.parametrize(("mean", "speaks"), [(0.1, False), (0.1001, True)])
def test_kl_speaks_above_twice_its_target(mean, speaks):
    assert (ff.KLSparsity(rho=0.05).verdict({**SUMMARY, "mean_activation": mean}) is not None) == speaks


def test_trainer_passes_the_verdict_on():
    config = ff.TrainConfig(steps=2, batch_size=7)
    terms = [ff.MSE(), ff.KLSparsity(weight=0.0)]
    trainer = ff.Trainer(ff.Autoencoder(5, 8, "sigmoid"), ff.ArraySource(random(7, 5)), terms, config, progress=False)
    with pytest.warns(ff.SparsityWarning, match=r"KL penalty .* \(now 0\)"):
        trainer.fit()
    assert "of 8 latents exceed one half per row" in trainer.describe()


def test_of_gaussian_latents_the_mean_says_nothing_of_a_mean_of_sigmoids():
    model = ff.Autoencoder(5, 8, "gaussian")
    with torch.no_grad():
        model.encoder.b_enc[:8] = 3.0
    terms = [ff.MSE(), ff.KLSparsity(weight=0.0)]
    trainer = ff.Trainer(model, ff.ArraySource(random(7, 5)), terms, ff.TrainConfig(steps=2), progress=False)
    trainer.fit()  # without a warning, which the tests make an error
    assert trainer.summary["mean_activation"] > 1
    assert "8 latents, none of them ever 0" in trainer.describe() and "one half" not in trainer.describe()


REFUSALS = {
    "kl": ("topk", {}, "'kl' needs logits.*'topk'.*'linear'.*given by: activation sigmoid"),
    "auxk": (
        "sigmoid",
        {},
        "'auxk' needs scores.*'sigmoid'.*given by: activation relu, activation wta, activation gated, "
        "activation jumprelu, activation matching_pursuit, activation topk, activation batchtopk",
    ),
    "l0_penalty": ("gated", {}, "'l0_penalty' needs threshold.*'gated'.*given by: activation jumprelu"),
    "gated_aux": ("jumprelu", {}, "'gated_aux' needs gate.*'jumprelu'.*given by: activation gated"),
    "matryoshka_mse": ("topk", {"name": "mlp", "hidden": [4]}, "'matryoshka_mse' needs linear_decoder.*'mlp'"),
    "bce": ("topk", {}, "'bce' needs output_logits.*output identity.*given by: output sigmoid"),
    "l1": ("relu", {"output": "sigmoid"}, "'l1' needs linear_decoder.*output sigmoid.*given by: network linear"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_term_that_needs_what_the_model_lacks_is_refused(name):
    activation, network, words = REFUSALS[name]
    term = ff.L1(by_decoder_norm=True) if name == "l1" else Term.from_config(name)
    model = ff.Autoencoder(5, 8, activation, network={"name": "linear", **network})
    with pytest.raises(ValueError, match=words):
        ff.Trainer(model, ff.ArraySource(random(7, 5).sigmoid()), [term], progress=False)


def test_only_the_l1_that_asks_for_norms_needs_a_linear_decoder():
    assert ff.L1(by_decoder_norm=True).needs == {"linear_decoder"}
    assert ff.L1().needs == ff.L1.needs == frozenset()


@pytest.mark.parametrize("rho", [0, 1, -0.1, 1.5, math.nan])
def test_rho_is_a_mean_activation(rho):
    with pytest.raises(ValueError, match=f"between 0 and 1, got {rho}"):
        ff.KLSparsity(rho=rho)


@pytest.mark.parametrize("term", [ff.KLSparsity(weight=7), ff.L1(weight=7)], ids=lambda t: t.name)
def test_a_penalty_that_is_met_by_learning_nothing_is_too_strong(term):
    """The mean activation was right, two hundredths of the variance were explained, and not a word was said."""
    words = term.verdict({**SUMMARY, "explained_variance": 0.024})
    assert all(
        w in words for w in ("learned nothing: 2.4% of variance", "lower the penalty's weight (now 7)", "longer")
    )
    assert term.verdict({**SUMMARY, "explained_variance": 0.2}) is None
    assert term.verdict({**SUMMARY, "explained_variance": math.nan}) is None, "no row varies"


def test_more_weight_is_no_advice_where_nothing_was_learned():
    words = ff.KLSparsity().verdict({**SUMMARY, "mean_activation": 0.4, "explained_variance": 0.0})
    assert "; raise" not in words
    assert "train longer before" in words


def test_kl_per_map_is_kl_over_all_places():
    """By hand: every place of a map is one more observation of the same unit."""
    network = {"name": "conv", "channels": [3], "kernel": 3, "latents": "maps"}
    model = ff.Autoencoder((1, 4, 6), 5, "sigmoid", network=network, dtype=torch.float64)
    out = model(torch.randn(7, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    rho_hat = out.latents.movedim(1, 0).flatten(1).mean(1)
    expected = (0.1 * (0.1 / rho_hat).log() + 0.9 * (0.9 / (1 - rho_hat)).log()).sum()
    assert rho_hat.shape == (5,)
    assert ff.KLSparsity(rho=0.1, per_map=True)(model, out).item() == pytest.approx(expected.item(), rel=1e-12)
    per_unit = ff.KLSparsity(rho=0.1)(model, out)
    assert per_unit > expected * 2, "a sum over places, too"


def test_orthogonality_of_fewer_latents_than_columns():
    """The smaller Gram matrix is another one then."""
    model = make("relu", width=9, n_latents=4)
    out = model(random(3, 9))
    expected = orthogonality(model, out, None)
    assert float(ff.Orthogonality()(model, out).detach()) == pytest.approx(expected, rel=1e-12)
    with torch.no_grad():
        model.decoder.W_dec.copy_(torch.eye(4, 9))
    assert float(ff.Orthogonality()(model, out).detach()) == pytest.approx(0, abs=1e-12)
