"""The mechanisms of today's dictionaries, each against its paper's formula; and dead latents come back."""

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.contracts import TrainState
from fewfire.disk import load_tensors

pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def built(activation, n_latents=8):
    activation.build(n_latents)
    return activation


def training(n_latents=8, dead=(), step=1):
    since = torch.zeros(n_latents, dtype=torch.int64)
    since[list(dead)] = 10**9
    return TrainState(step=step, samples=0, since_fired=since, lr=0.1, seed=0, dead_after=1000)


def make_rows(n=2000, d_in=16, n_directions=32, share=0.08, seed=0):
    """(n, d_in) float32: sparse sums of directions, with noise."""
    generator = np.random.default_rng(seed)
    directions = generator.normal(size=(n_directions, d_in))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    weights = generator.exponential(size=(n, n_directions)) * (generator.random((n, n_directions)) < share)
    return (weights @ directions + 0.02 * generator.normal(size=(n, d_in))).astype(np.float32)


ROWS = make_rows()


def fit(model, terms=None, **train):
    settings = {"steps": 200, "batch_size": 100, "learning_rate": 3e-3, "checkpoint_every": 0, **train}
    trainer = ff.Trainer(model, ROWS, terms, ff.TrainConfig(**settings), progress=False)
    trainer.fit()
    return trainer


# ------------------------------------------------------------------------------------------- BatchTopK


@pytest.mark.parametrize(("k", "kept"), [(2, 20), (0.25, 2), (2.5, 25), (1.26, 13), (0.01, 1), (8, 80)])
def test_so_many_latents_of_the_whole_batch(k, kept):
    z = random(10, 8).abs() + 0.1
    latents = built(ff.BatchTopK(k=k))(z, training())
    assert int((latents != 0).sum()) == kept
    assert torch.equal(latents.flatten().sort().values[-kept:], z.flatten().sort().values[-kept:])


def test_rows_share_as_they_need():
    z = random(10, 8).abs()
    z[3] += 10
    latents = built(ff.BatchTopK(k=2))(z, training())
    assert int((latents[3] != 0).sum()) == 8
    assert int((latents != 0).sum()) == 20


def test_what_is_not_positive_does_not_fire():
    z = random(10, 8)
    latents = built(ff.BatchTopK(k=7))(z, training())
    assert torch.equal(latents, z.relu())


def test_the_threshold_of_batches_is_averaged_and_saved(tmp_path):
    activation = built(ff.BatchTopK(k=2))
    lowest = []
    for seed in range(5):
        z = random(10, 8, seed=seed, dtype=torch.float32).abs()
        activation.commit(ff.ForwardOutput(z, z, z, z, z, z), training())
        lowest.append(float(z.flatten().sort().values[-21]))
        later_more = np.average(lowest, weights=range(1, len(lowest) + 1))  # the first ones are of another model
        assert float(activation.threshold) == pytest.approx(later_more, rel=1e-5)
    model = ff.Autoencoder(16, 32, ff.BatchTopK(k=3))
    fit(model, steps=20)
    assert int(model.activation.seen) == 20
    ff.save(model, tmp_path / "model")
    again = ff.load(tmp_path / "model")
    assert float(again.activation.threshold) == float(model.activation.threshold) > 0
    assert torch.equal(again.encode(ROWS[:9]), model.encode(ROWS[:9]))


def test_later_batches_count_for_a_twentieth():
    activation = built(ff.BatchTopK(k=2))
    activation.seen.fill_(5000)
    activation.threshold.fill_(1.0)
    z = torch.full((10, 8), 3.0)
    z[:, 2:] = 2.0
    activation.commit(ff.ForwardOutput(z, z, z, z, z, z), training())
    assert float(activation.threshold) == pytest.approx(1.05)


def test_before_any_training_it_is_a_rectifier():
    model = ff.Autoencoder(16, 32, ff.BatchTopK(k=3))
    rectified = model(torch.from_numpy(ROWS[:50])).pre_acts.relu()
    torch.testing.assert_close(model.encode(ROWS[:50]), rectified)


def test_at_inference_neighbours_do_not_matter_and_k_fire():
    model = ff.Autoencoder(16, 32, ff.BatchTopK(k=3), preprocess="standardize")
    fit(model, steps=300)
    codes = model.encode(ROWS)
    assert (codes != 0).sum(1).float().mean() == pytest.approx(3, rel=0.1)
    assert (codes != 0).sum(1).float().std() > 0.5, "each row as many as it needs"
    assert torch.equal(model.encode(ROWS[5:6])[0], codes[5])
    assert torch.equal(model.encode(np.concatenate([ROWS[5:6], 100 * ROWS[:70]]))[0], codes[5])


@pytest.mark.parametrize("k", [0, -1, float("nan"), 8.1])
def test_batchtopk_refuses(k):
    with pytest.raises(ValueError, match="k is"):
        built(ff.BatchTopK(k=k))


# ------------------------------------------------------------------------------------------- JumpReLU


def test_jumprelu_is_the_identity_above_each_threshold():
    activation, z = built(ff.JumpReLU(threshold=0.5)), random(50, 8)
    with torch.no_grad():
        activation.threshold.copy_(torch.linspace(0, 1, 8))
    theta = np.linspace(0, 1, 8, dtype=np.float32)
    expected = z.numpy() * (z.numpy() > theta)
    for state in (None, training()):
        assert np.array_equal(activation(z, state).detach().numpy(), expected)
    with torch.no_grad():
        assert np.array_equal(activation(z).numpy(), expected)
    assert np.array_equal(activation.step(z).detach().numpy(), z.numpy() > theta)


@pytest.mark.parametrize("given", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_thresholds_are_never_narrower_than_float32(given, tmp_path):
    wide = torch.float64 if given == torch.float64 else torch.float32
    for model in (
        ff.Autoencoder(16, 32, "jumprelu", dtype=given),
        ff.Autoencoder(16, 32, "jumprelu").to(given),
        ff.Autoencoder(16, 32, "gated", dtype=given),
        ff.Autoencoder(16, 32, "batchtopk", dtype=given),
    ):
        values = [*model.activation.parameters(), *(b for b in model.activation.buffers() if b.is_floating_point())]
        assert {t.dtype for t in values} == {wide}
        assert model.encoder.W_enc.dtype == given
        assert model(torch.from_numpy(ROWS[:5]).to(given)).latents.dtype == given
        ff.save(model, tmp_path / "model")
        again = ff.load(tmp_path / "model")
        assert {n: t.dtype for n, t in again.state_dict().items()} == {
            n: t.dtype for n, t in model.state_dict().items()
        }
        assert torch.equal(again.encode(ROWS), model.encode(ROWS))


def test_small_steps_of_a_threshold_are_not_lost():
    """In bfloat16 a hundred steps of a thousandth would leave 1.0 where it was."""
    model = ff.Autoencoder(16, 32, ff.JumpReLU(threshold=1.0)).to(torch.bfloat16)
    with torch.no_grad():
        for _ in range(100):
            model.activation.threshold.add_(1e-3)
    assert torch.allclose(model.activation.threshold, torch.tensor(1.1))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_thresholds_move_in_training_and_never_below_0(dtype):
    model = ff.Autoencoder(16, 32, "jumprelu", preprocess="standardize")
    trainer = ff.Trainer(model, ROWS, config=ff.TrainConfig(steps=80, dtype=dtype, checkpoint_every=0), progress=False)
    seen, inner = [], trainer._step
    trainer._step = lambda batch: (seen.append(model.activation.threshold.detach().clone()), inner(batch))[1]
    trainer.fit()
    assert (seen[0] == seen[0][0]).all(), "all start from one number"
    moved = (model.activation.threshold.detach() - seen[0]).abs()
    assert (moved > 1e-3).float().mean() > 0.9
    assert all((theta >= 0).all() for theta in seen)
    with torch.no_grad():
        model.activation.threshold.sub_(10)
        model.activation.commit(None, training())
    assert (model.activation.threshold == 0).all()


def test_thresholds_start_where_as_many_fire_as_by_default():
    model = ff.Autoencoder(16, 64, "jumprelu", preprocess="standardize")
    fit(model, [ff.MSE()], steps=1, learning_rate=0.0)
    assert ff.evaluate(model, ROWS)["l0"] == pytest.approx(64 / 16, rel=0.05)
    threshold = model.activation.threshold.detach().clone()
    assert float(model.activation.width) == pytest.approx(float(threshold[0]) / 2)
    fit(model, [ff.MSE()], steps=20)
    learned = model.activation.threshold.detach().clone()
    assert not torch.equal(learned, threshold)
    fit(model, [ff.MSE()], steps=1, learning_rate=0.0)
    assert torch.equal(model.activation.threshold, learned), "a trained model is not started again"


@pytest.mark.parametrize(
    ("settings", "threshold", "width"),
    [
        ({"threshold": 0.3}, 0.3, 0.15),
        ({"threshold": 0.3, "bandwidth": 0.1}, 0.3, 0.1),
        ({"bandwidth": 0.1}, None, 0.1),
    ],
)
def test_what_was_told_is_not_told_from_the_data(settings, threshold, width, tmp_path):
    model = ff.Autoencoder(16, 32, {"name": "jumprelu", **settings})
    fit(model, [ff.MSE()], steps=1, learning_rate=0.0)
    found = float(model.activation.threshold.detach()[0])
    assert found == pytest.approx(threshold) if threshold else found not in (0.1, 0.0)
    assert float(model.activation.width) == pytest.approx(width)
    ff.save(model, tmp_path / "model")
    again = ff.load(tmp_path / "model")
    assert again.config() == model.config()
    assert float(again.activation.width) == float(model.activation.width)


@pytest.mark.parametrize("n_latents", [1, 2, 15])
@pytest.mark.parametrize("rows", [ROWS, np.ones((50, 16), np.float32), 1e-5 * ROWS], ids=["rows", "constant", "small"])
def test_few_latents_and_rows_that_say_nothing(rows, n_latents):
    model = ff.Autoencoder(16, n_latents, "jumprelu")
    config = ff.TrainConfig(steps=5, batch_size=50, checkpoint_every=0)
    ff.Trainer(model, rows, config=config, progress=False).fit()
    assert float(model.activation.width) > 0
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "settings", [{"threshold": 0}, {"threshold": -1}, {"bandwidth": 0}, {"bandwidth": float("nan")}]
)
def test_jumprelu_refuses(settings):
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))} to be a number above 0"):
        ff.JumpReLU(**settings)


# ------------------------------------------------------------------------------------------- gated


def gated(tied=False):
    """A gated model with numbers of its own everywhere."""
    model = ff.Autoencoder(6, 8, "gated", network={"name": "linear", "tied": tied}, dtype=torch.float64)
    with torch.no_grad():
        for i, p in enumerate(p for p in model.parameters() if p.ndim == 1):
            p.copy_(0.4 * random(len(p), seed=20 + i))
    return model


def test_both_paths_are_the_papers():
    """Equations 3 to 5 of Rajamanoharan et al. 2024, with b_mag = b + exp(r) b_gate."""
    model, x = gated(), random(40, 6, seed=1)
    W_gate, b_gate = model.encoder.W_enc.detach().numpy(), model.encoder.b_enc.detach().numpy()
    r, b = model.activation.r_mag.detach().numpy(), model.activation.b_mag.detach().numpy()
    W_mag, b_mag = np.exp(r)[:, None] * W_gate, b + np.exp(r) * b_gate
    pi_gate, pi_mag = x.numpy() @ W_gate.T + b_gate, x.numpy() @ W_mag.T + b_mag
    expected = (pi_gate > 0) * np.maximum(pi_mag, 0)
    assert np.abs(model(x).latents.detach().numpy() - expected).max() < 1e-14
    assert ((pi_gate > 0) != (expected > 0)).any(), "an open gate, and nothing behind it"


@pytest.mark.parametrize("tied", [False, True])
def test_the_gates_learn_and_the_decoder_does_not_from_their_sizes(tied):
    model, x = gated(tied), random(40, 6, seed=1)
    out = model(x, state=training())
    value = ff.GatedAux()(model, out)
    value.backward()
    gates = np.maximum(out.pre_acts.detach().numpy(), 0)
    W_dec = model.decoder.W_dec.detach().numpy()
    error = gates @ W_dec + model.decoder.b_dec.detach().numpy() - x.numpy()
    assert float(value.detach()) == pytest.approx((error**2).sum() / 40)
    at_gates = 2 / 40 * error @ W_dec.T * (gates > 0)
    assert np.abs(model.encoder.W_enc.grad.numpy() - at_gates.T @ x.numpy()).max() < 1e-12, "the encoder's part alone"
    assert np.abs(model.encoder.b_enc.grad.numpy() - at_gates.sum(0)).max() < 1e-12
    assert model.decoder.b_dec.grad is None
    assert tied or model.decoder.W_dec.grad is None
    assert model.activation.r_mag.grad is None


def test_l1_acts_on_the_gates_and_leaves_magnitudes_alone():
    model, x = gated(), random(40, 6, seed=1)
    out = model(x, state=training())
    value = ff.L1()(model, out)
    value.backward()
    assert float(value.detach()) == pytest.approx(np.maximum(out.pre_acts.detach().numpy(), 0).sum() / 40)
    assert model.activation.r_mag.grad is None
    assert model.activation.b_mag.grad is None
    assert model.encoder.W_enc.grad.abs().sum() > 0


def test_without_gradients_gated_aux_has_a_value_and_no_graph():
    model, x = gated(), random(40, 6, seed=1)
    with torch.no_grad():
        value = ff.GatedAux()(model, model(x))
    assert not value.requires_grad
    assert float(value) == float(ff.GatedAux()(model, model(x)).detach())


def test_gated_aux_of_a_logistic_and_of_a_deep_decoder():
    for network in (
        {"name": "linear", "output": "sigmoid"},
        {"name": "mlp", "hidden": [5], "hidden_activation": "elu"},
    ):
        model, x = ff.Autoencoder(6, 8, "gated", network=network, dtype=torch.float64), random(9, 6).sigmoid()
        out = model(x)
        ff.GatedAux()(model, out).backward()
        again = model.output(model.decoder(out.pre_acts.relu()))
        expected = (again - x).square().sum(1).mean()
        assert float(ff.GatedAux()(model, out).detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
        assert all(p.grad is None for p in model.decoder.parameters())
        assert all(p.grad is not None for p in model.encoder.parameters())


# ------------------------------------------------------------------------------------------- matching pursuit


def pursuit(x, W_dec, b_enc, b_dec, k, scale=1.0):
    """Mallat & Zhang 1993, a row at a time: the atom that goes best with what is left, its part taken off, k times."""
    codes = np.zeros((len(x), len(W_dec)))
    for row, code in zip(x, codes, strict=True):
        left = row.copy()
        for _ in range(k):
            answers = W_dec @ left + b_enc
            best = answers.argmax()
            if answers[best] > 0:
                code[best] += answers[best]
                left -= answers[best] * W_dec[best]
    return codes


@pytest.mark.parametrize("k", [1, 2, 5])
def test_it_is_matching_pursuit(k):
    model, x = ff.Autoencoder(6, 20, ff.MatchingPursuit(k=k), dtype=torch.float64), random(40, 6, seed=1)
    assert model.network.tied and model.network.unit_norm
    assert torch.allclose(model.decoder.W_dec.norm(dim=1), torch.ones(20, dtype=torch.float64))
    with torch.no_grad():
        model.encoder.b_enc.copy_(0.1 * random(20, seed=2) - 0.6)
        model.decoder.b_dec.copy_(random(6, seed=3))
        codes = model.encode(x).numpy()
    W, b_enc, b_dec = (t.detach().numpy() for t in (model.decoder.W_dec, model.encoder.b_enc, model.decoder.b_dec))
    expected = pursuit(x.numpy(), W, b_enc, b_dec, k)
    assert np.abs(codes - expected).max() < 1e-12
    assert (codes != 0).sum(1).max() <= k
    assert (codes != 0).sum() > 0
    assert (codes >= 0).all(), "in some rounds no answer is above 0"
    assert k == 1 or len(np.unique((codes != 0).sum(1))) > 1


def test_a_latent_may_win_again():
    model = ff.Autoencoder(2, 2, ff.MatchingPursuit(k=3), network={"name": "linear", "unit_norm": False})
    with torch.no_grad():
        model.encoder.W_enc.copy_(0.5**0.5 * torch.eye(2))  # takes half of what is left
    codes = model.encode(torch.tensor([[1.0, 0.0]]))
    taken = 0.5**0.5 * (1 + 1 / 2 + 1 / 4)
    assert torch.allclose(codes, torch.tensor([[taken, 0.0]]))


def test_an_orthogonal_dictionary_is_recovered_exactly():
    model = ff.Autoencoder(8, 8, ff.MatchingPursuit(k=3), dtype=torch.float64)
    with torch.no_grad():
        model.encoder.W_enc.copy_(torch.linalg.qr(random(8, 8)).Q)
    generator, wanted = np.random.default_rng(0), np.zeros((50, 8))
    for row in wanted:
        row[generator.choice(8, 3, replace=False)] = generator.exponential(size=3) + 0.1
    x = torch.from_numpy(wanted) @ model.decoder.W_dec.detach()
    assert torch.allclose(model.encode(x), torch.from_numpy(wanted), atol=1e-12)
    assert torch.allclose(model.reconstruct(x), x, atol=1e-12)


@pytest.mark.parametrize("network", [{"name": "linear", "tied": False}, {"name": "mlp", "hidden": [9]}], ids=str)
def test_other_networks_pursue_as_well(network):
    """Each round reads what the decoder has not written yet, without its bias."""
    model, x = ff.Autoencoder(6, 20, ff.MatchingPursuit(k=3), network=network, dtype=torch.float64), random(30, 6)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * random(*p.shape, seed=4))
        silent = model.decoder(torch.zeros(1, 20, dtype=torch.float64))
        codes = torch.zeros(30, 20, dtype=torch.float64)
        for _ in range(3):
            answers = model.encoder(x - model.decoder(codes) + silent)
            best = answers.max(1)
            codes[range(30), best.indices] += best.values.relu()
        assert torch.allclose(model.encode(x), codes, atol=1e-12)
        assert torch.allclose(model(x).pre_acts, model.encoder(x), atol=1e-12), "the first round's"


def test_more_rounds_explain_more():
    found = []
    for k in (1, 2, 4):
        model = ff.Autoencoder(16, 32, ff.MatchingPursuit(k=k), preprocess="standardize")
        fit(model, [ff.MSE(), ff.AuxK()], dead_after=2000)
        assert torch.allclose(model.decoder.W_dec.norm(dim=1), torch.ones(32), atol=1e-6), "tied, and at norm 1"
        found.append(ff.evaluate(model, ROWS)["fvu"])
    assert found[0] > 1.2 * found[1] > 1.4 * found[2]


def test_what_cannot_be_taken_off_the_row_is_refused():
    with pytest.raises(ValueError, match=r"'matching_pursuit' needs residual: .*input's shape \(6,\), got \(4,\)"):
        ff.Autoencoder(6, 8, "matching_pursuit", d_out=4, network={"name": "linear", "tied": False})
    with pytest.raises(ValueError, match="'matching_pursuit' needs residual: .*output identity, got sigmoid"):
        ff.Autoencoder(6, 8, "matching_pursuit", network={"name": "linear", "output": "sigmoid"})
    for k in (0, -1, 1.5):
        with pytest.raises(ValueError, match="k is the number of rounds: expected a whole number from 1"):
            ff.MatchingPursuit(k=k)


# ------------------------------------------------------------------------------------------- Matryoshka


@pytest.mark.parametrize(
    ("prefixes", "sizes"),
    [
        ((2, 4), [2, 4, 32]),
        ((1 / 8, 0.5), [4, 16, 32]),
        ((1 / 32, 1 / 8, 1 / 2), [1, 4, 16, 32]),
        ((1e-9,), [1, 32]),
        ((0.5, 20), [16, 20, 32]),
        ((32,), [32]),
        ((), [32]),
    ],
)
def test_prefixes_are_counts_or_shares_and_all_latents_are_the_last(prefixes, sizes):
    assert ff.MatryoshkaMSE(prefixes=prefixes).sizes(32) == sizes


@pytest.mark.parametrize("prefixes", [(0, 2), (-1,), (4, 2), (2, 2), (float("nan"),)])
def test_prefixes_rise_from_above_0(prefixes):
    with pytest.raises(ValueError, match="expected prefixes to be rising numbers above 0"):
        ff.MatryoshkaMSE(prefixes=prefixes)


def test_a_prefix_longer_than_the_latents():
    model = ff.Autoencoder(6, 8)
    with pytest.raises(ValueError, match="expected prefixes of at most 8 latents, got 9"):
        ff.MatryoshkaMSE(prefixes=[9])(model, model(random(3, 6, dtype=torch.float32)))


def test_early_latents_learn_what_is_general():
    """Alone they explain more than those of a dictionary that was trained as a whole."""
    found = []
    for loss in (ff.MSE(), ff.MatryoshkaMSE(prefixes=[4])):
        model = ff.Autoencoder(16, 32, ff.TopK(k=4), preprocess="standardize")
        fit(model, [loss, ff.AuxK()], steps=300, dead_after=3000)
        codes = model.encode(ROWS)
        codes[:, 4:] = 0
        rest = torch.from_numpy(ROWS) - model.decode(codes)
        found.append(float(rest.square().sum()) / float((ROWS - ROWS.mean(0)).__pow__(2).sum()))
    assert found[1] < found[0] - 0.05


def test_matryoshka_with_tied_weights_has_the_gradient_of_both_ways():
    model = ff.Autoencoder(6, 8, "relu", network={"name": "linear", "tied": True}, dtype=torch.float64)
    x, W = random(9, 6), model.encoder.W_enc
    ff.MatryoshkaMSE(prefixes=[2])(model, model(x)).backward()
    shared = W.detach().clone().requires_grad_()
    z = (x @ shared.T + model.encoder.b_enc.detach()).relu()
    loss = sum((z[:, :n] @ shared[:n] + model.decoder.b_dec.detach() - x).square().sum(1).mean() for n in (2, 8)) / 2
    (expected,) = torch.autograd.grad(loss, shared)
    assert torch.allclose(W.grad, expected, atol=1e-12)


# ------------------------------------------------------------------------------------------- dead latents

AUXK = ["topk", "batchtopk", "relu", "jumprelu", "gated", "matching_pursuit", "wta"]
SETTINGS = {"topk": {"k": 3}, "batchtopk": {"k": 3}, "matching_pursuit": {"k": 3}}
DEAD = list(range(0, 32, 2))


def half_dead(activation, by=4.0, dtype=torch.float32, tied=False):
    """Every second latent starts far below the threshold of all rows."""
    settings = {"name": activation, **SETTINGS.get(activation, {})}
    model = ff.Autoencoder(16, 32, settings, network={"name": "linear", "tied": tied}, dtype=dtype)
    with torch.no_grad():
        model.encoder.b_enc[DEAD] -= by
    return model


@pytest.mark.parametrize("activation", AUXK)
def test_auxk_teaches_the_dead_alone(activation):
    """Every dead row of encoder and decoder gets gradient, no living one does."""
    model, x = half_dead(activation, by=0.3, dtype=torch.float64), torch.from_numpy(ROWS[:200]).double()
    state = training(32, DEAD)
    ff.AuxK(k_aux=16)(model, model(x, state=state), state).backward()
    living = [j for j in range(32) if j not in DEAD]
    for gradient in (model.encoder.W_enc.grad, model.encoder.b_enc.grad[:, None], model.decoder.W_dec.grad):
        assert (gradient[living] == 0).all()
        assert (gradient[DEAD].abs().sum(1) > 0).all() or gradient is model.decoder.W_dec.grad
    assert model.decoder.b_dec.grad is None


PENALTIES = {
    "relu": [ff.L1(weight=0.1)],
    "gated": [ff.L1(weight=0.1), ff.GatedAux()],
    "jumprelu": [ff.L0Penalty(weight=0.05)],
}


@pytest.mark.parametrize(
    ("activation", "by"),  # so deep that few come up by themselves; of top-k ones, some do on some rows
    [("topk", 2.4), ("batchtopk", 3.2), ("jumprelu", 3.0), ("matching_pursuit", 1.8), ("relu", 4.0), ("gated", 4.0)],
)
def test_the_dead_come_back(activation, by):
    """Winners over the batch are left out: there every latent with anything positive wins."""
    found = {}
    for name, helpers in {"without": [], "with": [ff.AuxK()]}.items():
        model = half_dead(activation, by)
        fit(model, [ff.MSE(), *PENALTIES.get(activation, []), *helpers], steps=400, dead_after=500)
        found[name] = ff.evaluate(model, ROWS)
    assert found["without"]["dead_fraction"] > 0.2
    assert found["with"]["dead_fraction"] < 0.8 * found["without"]["dead_fraction"]
    assert found["with"]["fvu"] < found["without"]["fvu"]


@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu", "gated"])
def test_tied_rows_stay_at_norm_1(activation):
    settings = {"name": activation, **SETTINGS.get(activation, {})}
    model = ff.Autoencoder(16, 32, settings, network={"name": "linear", "tied": True, "unit_norm": True})
    before = model.encoder.W_enc.detach().clone()
    trainer = fit(model, steps=50)
    assert torch.allclose(model.encoder.W_enc.norm(dim=1), torch.ones(32), atol=1e-6)
    assert not torch.allclose(model.encoder.W_enc, before, atol=1e-2)
    assert trainer.model.decoder.W_dec is model.encoder.W_enc


def test_the_file_of_a_model_holds_what_was_measured(tmp_path):
    for activation, names in {
        "jumprelu": {"threshold", "width"},
        "gated": {"threshold", "r_mag", "b_mag"},
        "batchtopk": {"threshold", "seen"},
        "matching_pursuit": set(),
    }.items():
        ff.save(ff.Autoencoder(6, 8, activation), tmp_path / activation)
        tensors = load_tensors(tmp_path / activation / "model.safetensors")[0]
        assert {n.removeprefix("activation.") for n in tensors if n.startswith("activation.")} == names
