"""The convolutional network: exact sizes, the mirror as the adjoint, rows that stand alone, training that trains."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import files, rng
from fewfire.contracts import Layout, TrainState
from fewfire.disk import load_tensors, save_tensors
from fewfire.networks import Conv, Convolution, Deconvolution, Network, Sizes, Window

SHAPES = [(1, 8, 8), (1, 7, 9), (3, 5, 5), (2, 31), (17,)]
LATENTS = ["vector", "maps"]


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def model(shape=(1, 8, 8), activation="topk", n_latents=6, dtype=torch.float32, layout=None, d_out=None, **settings):
    """Small, and with biases that are not 0."""
    network = {"name": "conv", "channels": (4, 5), **settings}
    made = ff.Autoencoder(shape, n_latents, activation, network=network, dtype=dtype, layout=layout, d_out=d_out)
    with torch.no_grad():
        for i, (name, p) in enumerate(made.named_parameters()):
            if name.endswith(("b_enc", "b_dec")):
                p.copy_(randn(*p.shape, seed=i) / 4)
    return made


def sizes(shape, n_latents=6, n_pre=1, target=None, layout=None):
    return Sizes(shape, target or shape, n_latents, n_pre, layout or Layout())


# -------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (4, 2), (5, 3), (2, 2), (11, 1), (6, 4)])
def test_a_stride_leaves_a_share_rounded_up_and_the_mirror_gives_all_back(kernel, stride):
    for n in range(1, 24):
        window = Window((n,), (kernel,), (stride,))
        (before, after) = window.border[0]
        assert window.places == (math.ceil(n / stride),)
        assert 0 <= before <= after <= before + 1
        assert before + n + after == (window.places[0] - 1) * stride + kernel
        down, up = Convolution(2, 3, window), Deconvolution(3, 2, window)
        for p in (down.W_enc, up.W_dec):
            torch.nn.init.ones_(p)
        codes = down(randn(4, 2, n))
        assert codes.shape == (4, 3, *window.places)
        assert up(codes).shape == (4, 2, n)


@pytest.mark.parametrize(
    ("grid", "kernel", "stride"), [((7, 9), (3, 4), (1, 2)), ((8, 8), (4, 4), (2, 2)), ((10,), (5,), (3,))], ids=str
)
def test_both_layers_by_hand(grid, kernel, stride):
    """Every window in plain numpy; the mirror is the transpose of the same matrix."""
    window = Window(grid, kernel, stride)
    down, up = Convolution(2, 3, window).double(), Deconvolution(3, 2, window).double()
    weight = randn(3, 2, *kernel, dtype=torch.float64)
    with torch.no_grad():
        for matrix in (down.W_enc, up.W_dec):
            matrix.copy_(weight.flatten(1))
        down.b_enc.copy_(torch.tensor([1.0, -2.0, 3.0]))
        up.b_dec.copy_(torch.tensor([0.5, -0.5]))
    places = list(itertools.product(*map(range, window.places)))
    matrix = np.zeros((3, len(places), 2, *grid))
    for i, place in enumerate(places):
        starts = [p * s - before for p, s, (before, _) in zip(place, stride, window.border, strict=True)]
        for offset in itertools.product(*map(range, kernel)):
            at = tuple(start + o for start, o in zip(starts, offset, strict=True))
            if all(0 <= a < n for a, n in zip(at, grid, strict=True)):
                matrix[(slice(None), i, slice(None), *at)] = weight.numpy()[(slice(None), slice(None), *offset)]
    matrix = matrix.reshape(3 * len(places), -1)
    x, z = randn(5, 2, *grid, dtype=torch.float64), randn(5, 3, *window.places, dtype=torch.float64)
    with torch.no_grad():
        codes, rows = down(x).flatten(2), up(z).flatten(2)
    expected = (x.flatten(1).numpy() @ matrix.T).reshape(5, 3, -1) + np.array([1, -2, 3])[:, None]
    assert np.abs(codes.numpy() - expected).max() < 1e-12
    expected = (z.flatten(1).numpy() @ matrix).reshape(5, 2, -1) + np.array([0.5, -0.5])[:, None]
    assert np.abs(rows.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 28, 28), (2, 3, 64), (1, 5)], ids=str)
def test_shapes(shape, latents):
    made = model(shape, latents=latents)
    x = randn(70, *shape)
    out = made(x)
    assert out.recon.shape == made.reconstruct(x).shape == x.shape
    assert out.latents.shape == made.encode(x).shape == (70, *made.latent_shape)
    assert made.latent_shape[0] == 6
    grid = made.network.input_shape[1:]
    assert made.latent_shape[1:] == (() if latents == "vector" else tuple(math.ceil(n / 8) for n in grid))
    assert torch.equal(made.decode(made.encode_sparse(x)), made.decode(made.encode(x)))
    assert made.encode(x[:0]).shape == (0, *made.latent_shape)


def test_each_convolution_may_have_its_own_kernel_and_stride():
    made = model((1, 12, 12), channels=(4, 5), kernel=(5, 3), stride=(3, 1), latents="vector")
    assert [layer.W_enc.shape for layer in made.encoder.layers] == [(4, 25), (5, 36), (6, 5 * 4 * 4)]
    made = model((1, 12, 12), channels=[4], kernel=[5, 3], stride=[3, 2], latents="maps")
    assert made.latent_shape == (6, 2, 2)
    assert [layer.W_dec.shape for layer in made.decoder.layers] == [(6, 4 * 9), (4, 25)]


def test_a_picture_that_moves_moves_its_codes():
    made = model((1, 12, 12), "relu", channels=(4,), kernel=3, stride=1, latents="maps")
    x = torch.zeros(2, 1, 12, 12)
    x[0, 0, 3:6, 4:7] = randn(3, 3)
    x[1, 0, 5:8, 5:8] = x[0, 0, 3:6, 4:7]
    codes = made.encode(x)
    assert torch.allclose(codes[0, :, 1:8, 2:9], codes[1, :, 3:10, 3:10], atol=1e-6)


def test_flat_rows_are_read_as_their_layout_says():
    """Flat digits are pictures to a person, and so to the network; it writes down what it took them for."""
    x = randn(9, 64)
    flat = model(64, layout=Layout("image", (8, 8)))
    picture = model((1, 8, 8))
    picture.load_state_dict(flat.state_dict())
    assert flat.config()["network"]["input_shape"] == [1, 8, 8]
    assert torch.equal(flat.encode(x), picture.encode(x.view(-1, 1, 8, 8)))
    assert flat.reconstruct(x).shape == (9, 64)
    for layout, shape, settings in [
        (Layout(), (1, 64), {}),
        (Layout("image", (4, 4, 4)), (4, 4, 4), {}),
        (Layout("series", (2, 32)), (2, 32), {}),
        (Layout("image", (8, 8)), (2, 32), {"input_shape": (2, 32)}),
    ]:
        made = model(64, layout=layout, **settings)
        assert made.network.input_shape == shape
        again = ff.Autoencoder.from_config({**made.config(), "layout": Layout().to_dict()})
        again.load_state_dict(made.state_dict())
        assert torch.equal(again.encode(x), made.encode(x)), "what a layout says later changes nothing"


def test_targets_of_other_channels():
    assert model((1, 8, 8), d_out=(3, 8, 8)).reconstruct(randn(2, 1, 8, 8)).shape == (2, 3, 8, 8)
    assert model((1, 8, 8), d_out=(3, 8, 8), latents="maps").decoder.layers[-1].b_dec.shape == (3,)


# ------------------------------------------------------------------------------- a filter is a latent


def test_a_filter_is_added_wherever_its_map_fires():
    made = model((1, 9, 9), "relu", channels=(4, 4), kernel=3, stride=1, latents="maps", decoder_kernel=5)
    assert len(made.decoder.layers) == 1
    filters = made.decoder.layers[0].W_dec.detach().view(6, 5, 5)
    z = torch.zeros(1, 6, 9, 9)
    z[0, 2, 4, 3] = 2.0
    z[0, 5, 0, 8] = 1.0
    added = (made.decode(z) - made.decode(0 * z))[0, 0]
    expected = torch.zeros(9, 9)
    expected[2:7, 1:6] += 2 * filters[2]
    expected[:3, 6:] += filters[5, 2:, :3]
    assert torch.allclose(added, expected, atol=1e-5)


def test_a_decoder_of_one_filter_steps_as_far_as_all_strides_together():
    made = model((2, 30), "wta", channels=(4,), kernel=4, stride=(3, 2), latents="maps", decoder_kernel=12)
    assert made.latent_shape == (6, 5)
    assert made.decoder.layers[0].window == Window((30,), (12,), (6,))
    assert made.reconstruct(randn(3, 2, 30)).shape == (3, 2, 30)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("settings", [{}, {"latents": "maps"}, {"latents": "maps", "decoder_kernel": 9}], ids=str)
def test_what_a_latent_writes_keeps_norm_one(settings):
    made = model((1, 8, 8), "relu", stride=(2, 1, 2) if settings else 2, **settings)
    first = made.decoder.layers[0]
    assert made.decoder.constrained and (first.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
    config = ff.TrainConfig(steps=20, batch_size=50, learning_rate=1e-3)
    ff.Trainer(made, ff.ArraySource(randn(100, 1, 8, 8)), config=config, progress=False).fit()
    assert (first.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
    made.decoder(made.encoder(randn(9, 1, 8, 8)).relu()).square().sum().backward()
    made.decoder.project_gradient()
    assert ((first.W_dec.grad * first.W_dec).sum(1)).abs().max() < 1e-4 * first.W_dec.grad.abs().max()
    free = model((1, 8, 8), "relu", unit_norm=False, **settings)
    assert not free.decoder.constrained


@pytest.mark.parametrize(("output", "expected"), [("identity", True), ("sigmoid", False)])
def test_one_layer_of_filters_prefers_what_linear_prefers(output, expected):
    assert model(channels=(), latents="maps", output=output).decoder.constrained == expected
    assert model(latents="maps", output=output).decoder.constrained


# ------------------------------------------------------------------------------------- first weights


def test_first_weights_come_from_the_seed_alone():
    def weights(seed):
        recipe = Network.from_config({"name": "conv", "channels": (4, 5), "latents": "maps"})
        pair = recipe.build(sizes((1, 8, 8)), unit_norm=False, generator=rng.generator(seed, "weights"))
        return [p for module in pair[:2] for p in module.parameters()]

    a, b, c = weights(1), weights(1), weights(2)
    assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))
    assert not torch.equal(a[0], c[0])
    assert all(p.is_contiguous() for p in a)


@pytest.mark.parametrize("hidden_activation", ["relu", "sigmoid", "tanh"])
def test_where_weights_start(hidden_activation):
    """By fan in before a rectifier, else by both fans; a place is in kernel / stride windows along each side."""
    recipe = Conv((40, 50), kernel=(4, 6), stride=(2, 3), hidden_activation=hidden_activation)
    encoder, decoder, _ = recipe.build(sizes((3, 24, 24), 60), unit_norm=False, generator=rng.generator(0))
    factor = 16 if hidden_activation == "sigmoid" else 1
    # (weight, fan in, fan out, is before the hidden activation)
    last = 50 * 4 * 4
    layers = [
        (encoder.layers[0].W_enc, 3 * 16, 40 * 16 / 4, True),
        (encoder.layers[1].W_enc, 40 * 36, 50 * 36 / 9, True),
        (encoder.layers[2].W_enc, last, 60, False),
        (decoder.layers[0].W_dec, 60, last, True),
        (decoder.layers[1].W_dec, 50 * 36 / 9, 40 * 36, True),
        (decoder.layers[2].W_dec, 40 * 16 / 4, 3 * 16, False),
    ]
    for weight, fan_in, fan_out, hidden in layers:
        both = 6 / (fan_in + fan_out + 1) * (factor if hidden else 1)
        bound = math.sqrt(6 / fan_in if hidden and hidden_activation == "relu" else both)
        assert 0.98 * bound < float(weight.detach().abs().max()) <= bound


def test_a_dictionary_starts_as_directions_and_gives_rows_back_at_about_their_size():
    made = ff.Autoencoder(
        (1, 12, 12), 32, "relu", network={"name": "conv", "channels": (), "kernel": 5, "stride": 1, "latents": "maps"}
    )
    down, up = made.encoder.layers[0].W_enc, made.decoder.layers[0].W_dec
    assert torch.allclose(up.norm(dim=1), torch.ones(32), atol=1e-5)
    assert torch.allclose(down * 32, up, atol=1e-5), "32 filters share a place: 32 * 25 windows over 25 weights"
    x = randn(20, 1, 12, 12)
    assert 0.05 < float(made(x).recon.detach().var() / x.var()) < 2
    vector = ff.Autoencoder((1, 8, 8), 16, "relu", network="conv")
    assert torch.equal(vector.encoder.layers[-1].W_enc, vector.decoder.layers[0].W_dec)


# -------------------------------------------------------------------------------------- rows stand alone


@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 28, 28), (16, 6, 6)], ids=str)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(shape, dtype, latents):
    made = model(shape, "relu", n_latents=11, channels=(16, 33), latents=latents, kernel=5)
    x = randn(150, *shape, dtype=dtype)
    room = torch.zeros(x.numel() + 1, dtype=dtype)
    moved = room[1:].view_as(x).copy_(x)
    together, rows = made.encode(x), made.reconstruct(x)
    for i in (0, 1, 63, 64, 149):
        assert torch.equal(made.encode(x[i : i + 1])[0], together[i]), i
        assert torch.equal(made.reconstruct(x[i : i + 1])[0], rows[i]), i
    assert torch.equal(made.encode(x[3:80]), together[3:80])
    assert torch.equal(made.encode(moved), together)
    loud = x * 1e6
    loud[9] = x[9]
    assert torch.equal(made.encode(loud)[9], made.encode(x)[9])


@pytest.mark.parametrize("latents", LATENTS)
def test_precisions_agree(latents):
    made, x = model(activation="sigmoid", latents=latents), randn(40, 1, 8, 8)
    fine = made.encode(x.double())
    assert fine.dtype == torch.float64
    assert torch.allclose(fine.float(), made.encode(x), atol=1e-5)
    with torch.enable_grad():  # as in training, where rows go together
        assert torch.allclose(fine, made.double()(x.double()).latents, atol=1e-12)
    half = model(activation="sigmoid", latents=latents).bfloat16()
    assert torch.allclose(half.encode(x), fine.float(), atol=0.05)
    assert half(x.bfloat16()).recon.dtype == torch.bfloat16


# -------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("activation", ["sigmoid", "gaussian"])
def test_gradients(activation, latents):
    """Directional derivatives of the usual objective, in float64, against central differences."""
    made = model((2, 5, 6), activation, latents=latents, hidden_activation="tanh", dtype=torch.float64)
    x = randn(7, 2, 5, 6, dtype=torch.float64)
    terms = [ff.MSE(), *made.activation.default_terms(), ff.KLSparsity(), ff.WeightDecay(), ff.Contractive()]
    state = TrainState(1, 1, torch.zeros(6, dtype=torch.int64), 1e-3)
    parameters = list(made.parameters())

    def value():
        out = made(x, state=state)
        return sum(term(made, out, state) for term in terms)

    directions = [randn(*p.shape, seed=i, dtype=torch.float64) for i, p in enumerate(parameters)]
    gradients = torch.autograd.grad(value(), parameters)
    exact = sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(step * d)
        ends.append(float(value().detach()))
    assert exact == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize("latents", LATENTS)
def test_contractive_is_the_jacobian(latents):
    made = model((1, 5, 4), "sigmoid", latents=latents, dtype=torch.float64)
    x = randn(3, 1, 5, 4, dtype=torch.float64)
    got = ff.Contractive(method="exact")(made, made(x))
    squares = [torch.autograd.functional.jacobian(lambda r: made(r[None]).latents, row).square().sum() for row in x]
    assert got.item() == pytest.approx(sum(squares).item() / 3, rel=1e-10)


# -------------------------------------------------------------------------------------------- training

CASES = {
    "topk": ({"name": "topk", "k": 6}, None, {}),
    "wta": ({"name": "wta", "rate": 0.2}, None, {}),
    "relu and l1": ("relu", [ff.MSE(), ff.L1(weight=0.3)], {}),
    "sigmoid and kl": ("sigmoid", [ff.MSE(), ff.KLSparsity(weight=0.05)], {}),
    "gaussian": ("gaussian", [ff.MSE(), ff.GaussianKL(weight=0.2)], {}),
    "masking noise": ({"name": "topk", "k": 6}, None, {"corruption": ff.Masking(0.2)}),
}


def trainer(case, latents, steps, folder=None, **changes):
    activation, terms, more = CASES[case]
    source = ff.digits()
    network = {"name": "conv", "channels": (8,), "latents": latents, "stride": 2 if latents == "vector" else (2, 1)}
    if activation == "sigmoid":  # rectified units between logistic ones lie on a plateau for some hundred steps
        network["hidden_activation"] = "elu"
    made = ff.Autoencoder(64, 24, activation, network=network, layout=source.layout, preprocess="center")
    config = ff.TrainConfig(steps=steps, batch_size=100, learning_rate=3e-3, **changes)
    return ff.Trainer(made, source, terms, config, folder=folder, progress=False, **more)


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("case", CASES)
def test_digits_are_learned(case, latents, tmp_path):
    digits = trainer(case, latents, 150)
    before = {name: p.detach().clone() for name, p in digits.model.named_parameters()}
    losses = [record["loss"] for record in digits.fit() if "loss" in record]
    assert all(map(math.isfinite, losses))
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:4])
    assert digits.summary["explained_variance"] > 0.3
    for name, p in digits.model.named_parameters():
        assert not torch.equal(p, before[name]), f"no gradient reached {name}"
    x = torch.as_tensor(next(digits.source.batches(70)).x_in)
    ff.save(digits.model, tmp_path / "model")
    loaded = ff.load(tmp_path / "model")
    assert loaded.config() == digits.model.config()
    assert torch.equal(loaded.encode(x), digits.model.encode(x))
    assert torch.equal(loaded.reconstruct(x), digits.model.reconstruct(x))


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")
@pytest.mark.parametrize(("case", "latents"), [("wta", "maps"), ("gaussian", "vector"), ("masking noise", "maps")])
def test_an_interrupted_run_goes_on_with_the_same_bits(case, latents, tmp_path):
    whole = trainer(case, latents, 24)
    whole.fit()
    parts = trainer(case, latents, 24, tmp_path, checkpoint_every=10)
    step = parts._step

    def killed(batch):
        if parts.state.step == 13:
            raise RuntimeError("killed")
        return step(batch)

    parts._step = killed
    with pytest.raises(RuntimeError, match="killed"):
        parts.fit()
    resumed = trainer(case, latents, 24, tmp_path, checkpoint_every=10)
    resumed.fit(resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("latents", LATENTS)
@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 5, 5), (2, 31), (17,)], ids=str)
def test_odd_sizes_are_learned(shape, latents):
    data = np.random.default_rng(0)
    atoms = data.normal(size=(12, math.prod(shape)))
    x = ((data.random((300, 12)) < 0.15) * data.exponential(size=(300, 12)) @ atoms).astype(np.float32)
    made = ff.Autoencoder(shape, 16, "relu", network={"name": "conv", "channels": (16,), "latents": latents})
    config = ff.TrainConfig(steps=150, batch_size=64, learning_rate=3e-3)
    source = ff.ArraySource(x.reshape(-1, *shape))
    ff.Trainer(made, source, [ff.MSE()], config, progress=False).fit()
    assert ff.evaluate(made, source)["explained_variance"] > 0.4


# --------------------------------------------------------------------------------------- what is said


def conv(shape=(1, 8, 8), **settings):
    return ff.Autoencoder(shape, 6, "relu", network={"name": "conv", **settings})


REFUSED = {
    "too small": (lambda: conv((1, 3, 3), channels=(4, 4, 4)), "larger rows.*convolution 2 would step by 2 over 1 x 1"),
    "one place": (lambda: conv((1,), channels=(4,)), "would step by 2 over 1 place"),
    "gaps": (lambda: Conv(kernel=2, stride=3), "at most the kernel, 2; got 3"),
    "no channels": (lambda: Conv(channels=()), "latents 'vector' is network 'linear'"),
    "channels": (lambda: Conv(channels=(4, 0)), r"channels to be 0 to 63 whole numbers from 1.*got \(4, 0\)"),
    "text": (lambda: Conv(channels="ab"), "channels.*whole numbers"),
    "one number": (lambda: Conv(channels=8), "channels.*got 8"),
    "huge": (lambda: Conv(channels=(10**9,)), "from 1 to 65,536; got"),
    "many": (lambda: Conv(channels=(4,) * 64), "0 to 63 whole"),
    "kernels": (lambda: Conv(kernel=(3, 3, 3)), r"kernel to be 2 whole numbers.*\(3, 3, 3\)"),
    "strides": (lambda: Conv(stride=2.5), "stride to be 2 whole numbers.*2.5"),
    "kernel": (lambda: conv(kernel=17), "kernel of at most twice the rows, 16; got 17"),
    "latents": (lambda: Conv(latents="map"), "one of vector, maps; got 'map'"),
    "decoder vector": (lambda: Conv(decoder_kernel=5), "'maps' with a decoder_kernel"),
    "decoder gaps": (lambda: conv(channels=(4,), latents="maps", decoder_kernel=3), "decoder_kernel from 4.*to 16.*3"),
    "decoder text": (lambda: Conv(channels=(4,), latents="maps", decoder_kernel="a"), "decoder_kernel"),
    "hidden": (lambda: Conv(hidden_activation="step"), "hidden_activation to be one of relu.*'step'"),
    "output": (lambda: Conv(output="softmax"), "identity, sigmoid"),
    "input_shape": (lambda: conv(input_shape=(1, 8, 9)), r"of 64 values.*got \(1, 8, 9\)"),
    "flat shape": (lambda: conv(input_shape=(64,)), "input_shape to be 2 to 3 whole"),
    "volume": (lambda: conv((1, 4, 4, 4)), r"input_shape \(channels, h, w\).*got \(1, 4, 4, 4\)"),
    "target": (lambda: ff.Autoencoder((1, 8, 8), 6, "relu", network="conv", d_out=10), r"place by place.*got \(10,\)"),
    "tied": (lambda: conv(tied=True), "'conv' has no setting 'tied'"),
}


@pytest.mark.parametrize(("call", "words"), [pytest.param(*case, id=n) for n, case in REFUSED.items()])
def test_refusals_say_what_was_expected_and_what_came(call, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        call()
    assert len(str(caught.value)) < 400


# --------------------------------------------------------------------------------------- model files


@pytest.mark.parametrize(
    "change",
    [
        {"channels": [10**9, 5]},
        {"channels": [1 << 16, 1 << 16]},
        {"channels": [4, 5], "kernel": 10**6},
        {"channels": [4, 5], "kernel": [16, 4]},
        {"channels": [4] * 64},
        {"channels": [4, 5], "stride": -1},
        {"channels": [4, 5], "input_shape": [1 << 40, 1 << 40]},
        {"channels": [4, 5], "input_shape": [1, 64]},
        {"channels": [], "latents": "maps"},
        {"channels": {"a": 1}},
    ],
    ids=str,
)
def test_a_hostile_file_is_refused_before_it_takes_memory(change, tmp_path, monkeypatch):
    """Sizes are compared on a device where they cost nothing; only what fits the file is built."""
    ff.save(model(), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors, metadata = load_tensors(file)
    metadata["architecture"]["network"].update(change)
    save_tensors(file, tensors, metadata)
    built, real = [], ff.Autoencoder.from_config
    monkeypatch.setattr(
        files.Autoencoder, "from_config", lambda config: (built.append(str(torch.empty(0).device)), real(config))[1]
    )
    with pytest.raises(ff.ModelFileError):
        ff.load(tmp_path)
    assert built == ["meta"]


def test_loading_imports_no_compiler(tmp_path):
    """Arithmetic on the device of sketches would: a second and a hundred megabytes."""
    ff.save(ff.Autoencoder((1, 8, 8), 9, "relu", network={"name": "conv", "channels": (), "latents": "maps"}), tmp_path)
    code = f"import sys, fewfire; fewfire.load({str(tmp_path)!r}); print('sympy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
