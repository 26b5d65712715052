"""Encoders and decoders: the maps they compute, where they start, and the constraint they keep."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import rng
from fewfire.networks import HIDDEN_ACTIVATIONS, Decoder, LinearDecoder, LinearEncoder, Network, Sizes


def build(network="linear", width=12, target=None, n_latents=20, n_pre=1, unit_norm=False, seed=0, **settings):
    recipe = Network.from_config({"name": network, **settings})
    shape = (width,) if isinstance(width, int) else width
    return recipe.build(
        Sizes(shape, target or shape, n_latents, n_pre), unit_norm=unit_norm, generator=rng.generator(seed, "weights")
    )


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3)])
def test_the_encoder_by_hand(shape):
    encoder = LinearEncoder(shape, 20)
    with torch.no_grad():
        encoder.W_enc.copy_(random(20, 12))
        encoder.b_enc.copy_(random(20, seed=1))
        got = encoder(random(5, *shape, seed=2))
    x = random(5, *shape, seed=2).double().numpy().reshape(5, 12)
    expected = x @ random(20, 12).double().numpy().T + random(20, seed=1).double().numpy()
    assert np.abs(got.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 2, 3)])
def test_the_decoder_by_hand(shape):
    decoder = LinearDecoder(20, shape)
    with torch.no_grad():
        decoder.W_dec.copy_(random(20, 12))
        decoder.b_dec.copy_(random(12, seed=1))
        got = decoder(random(5, 20, seed=2))
    expected = random(5, 20, seed=2).double().numpy() @ random(20, 12).double().numpy()
    expected += random(12, seed=1).double().numpy()
    assert got.shape == (5, *shape)
    assert np.abs(got.numpy().reshape(5, 12) - expected).max() < 1e-5


def test_a_latent_is_a_row_and_lies_in_one_piece():
    pair = build(target=(3, 5), n_pre=2)
    assert pair.latent_shape == (20,)
    assert pair.encoder.W_enc.shape == (40, 12)
    assert pair.decoder.W_dec.shape == (20, 15)
    assert pair.encoder.W_enc.is_contiguous()
    assert pair.decoder.W_dec.is_contiguous()


# ------------------------------------------------------------------------------------------ first weights


def test_a_unit_norm_dictionary_starts_as_directions_and_the_encoder_as_their_copy():
    encoder, decoder, _ = build(unit_norm=True)
    assert torch.allclose(decoder.W_dec.norm(dim=1), torch.ones(20), atol=1e-6)
    assert torch.equal(encoder.W_enc, decoder.W_dec)
    assert encoder.W_enc is not decoder.W_dec
    assert (encoder.b_enc == 0).all()
    assert (decoder.b_dec == 0).all()


@pytest.mark.parametrize("settings", [{"target": (7,)}, {"n_pre": 2}], ids=str)
def test_an_encoder_of_another_shape_starts_on_its_own(settings):
    encoder, decoder, _ = build(unit_norm=True, **settings)
    assert torch.allclose(decoder.W_dec.norm(dim=1), torch.ones(20), atol=1e-6)
    assert 0 < encoder.W_enc.abs().max() <= math.sqrt(6 / (12 + len(encoder.W_enc) + 1))


@pytest.mark.parametrize("tied", [False, True])
def test_otherwise_uniform_within_the_courses_bound(tied):
    encoder, decoder, _ = build(width=100, n_latents=300, tied=tied)
    bound = math.sqrt(6 / (100 + 300 + 1))
    for weight in (encoder.W_enc, decoder.W_dec):
        assert 0.99 * bound < weight.abs().max() <= bound
        assert float(weight.detach().square().mean()) == pytest.approx(bound**2 / 3, rel=0.03)
    assert torch.equal(encoder.W_enc, decoder.W_dec) == tied


@pytest.mark.parametrize("unit_norm", [False, True])
def test_first_weights_come_from_the_generator_alone(unit_norm):
    a, b, c = (build(unit_norm=unit_norm, seed=s) for s in (1, 1, 2))
    assert torch.equal(a.encoder.W_enc, b.encoder.W_enc)
    assert torch.equal(a.decoder.W_dec, b.decoder.W_dec)
    assert not torch.equal(a.decoder.W_dec, c.decoder.W_dec)


# ------------------------------------------------------------------------------------------ unit norm


def test_constrain_rescales_and_keeps_directions():
    decoder = LinearDecoder(20, (12,), unit_norm=True)
    with torch.no_grad():
        decoder.W_dec.copy_(random(20, 12) * torch.logspace(-6, 6, 20)[:, None])
    directions = decoder.W_dec.detach() / decoder.W_dec.detach().norm(dim=1, keepdim=True)
    decoder.constrain()
    assert (decoder.W_dec.norm(dim=1) - 1).abs().max() < 1e-6
    assert torch.allclose(decoder.W_dec, directions, atol=1e-6)


def test_constrain_writes_in_place():
    decoder = build(unit_norm=True).decoder
    address = decoder.W_dec.data_ptr()
    decoder.constrain()
    assert decoder.W_dec.data_ptr() == address


def test_a_row_of_zeros_stays_finite():
    decoder = LinearDecoder(3, (4,), unit_norm=True)
    torch.nn.init.zeros_(decoder.W_dec)
    decoder.constrain()
    assert (decoder.W_dec == 0).all()


def test_the_projected_gradient_is_across_the_row_and_nothing_else_is_lost():
    decoder = build(unit_norm=True).decoder
    gradient = random(20, 12, seed=3)
    decoder.W_dec.grad = gradient.clone()
    decoder.project_gradient()
    weight, left = decoder.W_dec.detach(), decoder.W_dec.grad
    assert ((left * weight).sum(1)).abs().max() < 1e-6
    along = (gradient * weight).sum(1, keepdim=True) * weight
    assert torch.allclose(left + along, gradient, atol=1e-6)


def test_without_unit_norm_nothing_is_touched():
    decoder = build().decoder
    before = decoder.W_dec.detach().clone()
    decoder.W_dec.grad = random(20, 12)
    decoder.project_gradient()
    decoder.constrain()
    assert torch.equal(decoder.W_dec, before)
    assert torch.equal(decoder.W_dec.grad, random(20, 12))
    assert not decoder.constrained


def test_no_gradient_yet():
    build(unit_norm=True).decoder.project_gradient()


def test_a_decoder_that_keeps_nothing():
    plain = Decoder()
    plain.project_gradient()
    plain.constrain()
    assert not plain.constrained


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("said", [None, False, True])
@pytest.mark.parametrize("preferred", [False, True])
def test_what_is_said_goes_before_what_is_preferred(said, preferred):
    recipe = Network.from_config({"name": "linear", "unit_norm": said})
    pair = recipe.build(Sizes((3,), (3,), 4, 1), unit_norm=preferred, generator=rng.generator(0))
    assert pair.decoder.unit_norm == (preferred if said is None else said)


def test_tied_needs_equal_widths_and_one_pre_activation():
    assert build(width=(3, 4), target=(12,), tied=True).decoder(torch.zeros(2, 20)).shape == (2, 12)
    for settings in ({"target": (11,)}, {"n_pre": 2}):
        with pytest.raises(ValueError, match="tied weights need"):
            build(tied=True, **settings)


def test_the_output_is_one_that_exists():
    with pytest.raises(ValueError, match="identity, sigmoid; got 'softmax'"):
        ff.Linear(output="softmax")


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_gets_a_gradient(tied):
    encoder, decoder, _ = build(tied=tied)
    decoder(encoder(random(5, 12)).sigmoid()).square().sum().backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_centre_and_start_from():
    """A row is read less the mean; where all latents are 0, the row given is written."""
    encoder, decoder, _ = build(width=(3, 4))
    before = encoder.b_enc.detach().clone()
    mean, x = random(3, 4, seed=5), random(6, 3, 4)
    pre_acts = encoder(x - mean)
    encoder.centre(mean)
    constant = torch.zeros(3, 4, dtype=torch.bool)
    constant[1, 2] = True
    decoder.start_from(mean, constant)
    assert not torch.equal(encoder.b_enc, before)
    assert torch.allclose(encoder(x), pre_acts, atol=1e-5)
    assert torch.allclose(decoder(torch.zeros(1, 20))[0], mean)
    recon = decoder(random(6, 20))
    assert (recon[:, 1, 2] == mean[1, 2]).all()
    assert ((recon != mean).sum(0) == 6).sum() == 11


# ------------------------------------------------------------------------------------------ deep networks

BETWEEN = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def deep(**settings):
    """12 columns, hidden layers of 9 and 7, 20 latents; biases that are not 0."""
    pair = build("mlp", **{"hidden": (9, 7), **settings})
    for module in (pair.encoder, pair.decoder):
        for i, p in enumerate(p for p in module.parameters() if p.ndim == 1):
            torch.nn.init.uniform_(p, -1, 1, generator=rng.generator(i))
    return pair


def arrays(module):
    return {name: p.detach().double().numpy() for name, p in module.named_parameters()}


def test_every_hidden_activation_is_in_these_tests():
    assert set(BETWEEN) == set(HIDDEN_ACTIVATIONS)


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("tied", [False, True])
def test_a_deep_network_by_hand(name, tied):
    encoder, decoder, latent_shape = deep(hidden_activation=name, tied=tied, width=(3, 4), target=(2, 6))
    assert latent_shape == (20,)
    x, between = random(5, 3, 4).double().numpy().reshape(5, 12), BETWEEN[name]
    e, d = arrays(encoder), arrays(decoder)
    for i in (0, 1):
        x = between(x @ e[f"layers.{i}.W_enc"].T + e[f"layers.{i}.b_enc"])
    expected = x @ e["layers.2.W_enc"].T + e["layers.2.b_enc"]
    assert np.abs(encoder(random(5, 3, 4)).detach().numpy() - expected).max() < 1e-5

    z = random(5, 20, seed=2).double().numpy()
    weights = [e[f"layers.{2 - i}.W_enc"] if tied else d[f"layers.{i}.W_dec"] for i in range(3)]
    for i in (0, 1):
        z = between(z @ weights[i] + d[f"layers.{i}.b_dec"])
    got = decoder(random(5, 20, seed=2))
    assert got.shape == (5, 2, 6)
    expected = z @ weights[2] + d["layers.2.b_dec"]
    assert np.abs(got.detach().numpy().reshape(5, 12) - expected).max() < 1e-5


@pytest.mark.parametrize("tied", [False, True])
def test_the_tensors_of_a_deep_network(tied):
    """What a model file holds; a latent is a row of the encoder's last and of the decoder's first matrix."""
    model = ff.Autoencoder(12, 20, "sigmoid", network=ff.Mlp((9, 7), tied=tied))
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    down, up = [(9, 12), (7, 9), (20, 7)], [(20, 7), (7, 9), (9, 12)]
    expected = {f"encoder.layers.{i}.W_enc": shape for i, shape in enumerate(down)}
    expected |= {f"encoder.layers.{i}.b_enc": shape[:1] for i, shape in enumerate(down)}
    expected |= {f"decoder.layers.{i}.b_dec": shape[1:] for i, shape in enumerate(up)}
    expected |= {} if tied else {f"decoder.layers.{i}.W_dec": shape for i, shape in enumerate(up)}
    assert shapes == expected
    assert all(t.is_contiguous() for t in model.state_dict().values())
    assert model.gives == {"logits", "residual"}


def test_several_pre_activations_per_latent():
    assert deep(n_pre=2).encoder(random(5, 12)).shape == (5, 40)
    with pytest.raises(ValueError, match="tied weights need"):
        deep(n_pre=2, tied=True)


@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_of_a_deep_network_gets_a_gradient(tied):
    encoder, decoder, _ = deep(tied=tied, hidden_activation="tanh")
    decoder(encoder(random(5, 12)).sigmoid()).square().sum().backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "tied", "before_hidden"),
    [
        ("relu", False, lambda fan_in, fan_out: 6 / fan_in),
        ("elu", False, lambda fan_in, fan_out: 6 / fan_in),
        ("tanh", False, lambda fan_in, fan_out: 6 / (fan_in + fan_out + 1)),
        ("relu", True, lambda fan_in, fan_out: 6 / (fan_in + fan_out + 1)),
        ("sigmoid", False, lambda fan_in, fan_out: 16 * 6 / (fan_in + fan_out + 1)),
    ],
)
def test_where_deep_weights_start(name, tied, before_hidden):
    encoder, decoder, _ = build("mlp", width=100, hidden=(300,), hidden_activation=name, tied=tied, n_latents=200)

    def check(weight, square_bound):
        assert 0.98 * math.sqrt(square_bound) < weight.abs().max() <= math.sqrt(square_bound)
        assert float(weight.detach().square().mean()) == pytest.approx(square_bound / 3, rel=0.03)

    check(encoder.layers[0].W_enc, before_hidden(100, 300))
    check(encoder.layers[1].W_enc, 6 / 501)
    if not tied:
        check(decoder.layers[0].W_dec, before_hidden(200, 300))
        check(decoder.layers[1].W_dec, 6 / 401)
    assert all((p == 0).all() for m in (encoder, decoder) for p in m.parameters() if p.ndim == 1)


def test_rectified_hidden_layers_pass_the_variance_on():
    """The reason for where they start: a signal of variance 1 comes out of ten layers as one."""
    encoder = build("mlp", width=200, hidden=(200,) * 10, hidden_activation="relu", n_latents=5).encoder
    x = random(400, 200)
    with torch.no_grad():
        for layer in list(encoder.layers)[:-1]:
            x = layer(x).relu()
    assert 0.3 < float(x.square().mean()) < 3


def test_latents_of_a_deep_network_keep_unit_norm():
    encoder, decoder, _ = build("mlp", unit_norm=True, hidden=(9, 7))
    first = decoder.layers[0]
    assert decoder.constrained
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(20), atol=1e-6)
    assert torch.equal(encoder.layers[-1].W_enc, first.W_dec)
    assert not any(layer.constrained for layer in list(decoder.layers)[1:])
    first.W_dec.grad = random(20, 7)
    decoder.project_gradient()
    assert (first.W_dec.grad * first.W_dec).sum(1).abs().max() < 1e-6
    with torch.no_grad():
        first.W_dec *= 3
    decoder.constrain()
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(20), atol=1e-6)


def test_a_deep_network_whose_rows_are_free():
    decoder = deep().decoder
    assert not decoder.constrained
    before = decoder.layers[0].W_dec.detach().clone()
    decoder.constrain()
    assert torch.equal(decoder.layers[0].W_dec, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [1, 5, 9, 33, 64, 101])
def test_a_row_alone_in_a_linear_network(width, dtype):
    """There and back; of these widths, only 64 lets every row begin at a cache line."""
    model = ff.Autoencoder(width, 77, "relu", dtype=torch.float32)
    x = random(150, width).to(dtype)
    codes, recon = model.encode(x), model.reconstruct(x)
    for i in (0, 1, 2, 31, 63, 64, 65, 149):
        assert torch.equal(model.encode(x[i : i + 1])[0], codes[i])
        assert torch.equal(model.reconstruct(x[i : i + 1])[0], recon[i])
    assert torch.equal(model.reconstruct(x[3:80]), recon[3:80])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", BETWEEN)
def test_a_row_alone_in_a_deep_network(name, dtype):
    """The bits that it has in any batch, there and back; 33, 41 and 77 fill no vector register."""
    model = ff.Autoencoder(33, 77, "relu", network=ff.Mlp((41, 50), name), preprocess="standardize")
    x = random(150, 33).to(dtype)
    model.preprocess.fit(lambda: [x])
    codes, recon = model.encode(x), model.reconstruct(x)
    for i in (0, 1, 31, 63, 64, 65, 149):
        assert torch.equal(model.encode(x[i : i + 1])[0], codes[i])
        assert torch.equal(model.reconstruct(x[i : i + 1])[0], recon[i])
    assert torch.equal(model.encode(x[3:80]), codes[3:80])


@pytest.mark.parametrize("tied", [False, True])
def test_weight_decay_reaches_every_matrix_and_no_bias(tied):
    model = ff.Autoencoder(12, 20, "sigmoid", network=ff.Mlp((9, 7), tied=tied))
    out = model(random(5, 12))
    ff.WeightDecay()(model, out).backward()
    for name, p in model.named_parameters():
        if p.ndim > 1:
            assert torch.equal(p.grad, p.detach()), name
        else:
            assert p.grad is None, name


def test_centre_and_start_from_in_a_deep_network():
    encoder, decoder, _ = deep(hidden_activation="tanh")
    mean, x = random(12, seed=5), random(6, 12)
    pre_acts = encoder(x - mean)
    encoder.centre(mean)
    assert torch.allclose(encoder(x), pre_acts, atol=1e-5)
    decoder.start_from(mean, torch.arange(12) == 4)
    assert torch.equal(decoder.layers[-1].b_dec, mean)
    recon = decoder(random(6, 20))
    assert (recon[:, 4] == mean[4]).all()
    assert ((recon != mean).sum(0) == 6).sum() == 11


@pytest.mark.parametrize(
    "hidden", [(), 5, (3, 0), (3, 2.5), "512", None, (1,) * 65], ids=["none", "5", "0", "2.5", "text", "None", "65"]
)
def test_hidden_layers_that_cannot_be(hidden):
    with pytest.raises(ValueError, match="expected hidden to be the widths of 1 to 64 layers"):
        ff.Mlp(hidden)


def test_other_settings_of_a_deep_network():
    with pytest.raises(ValueError, match="hidden_activation to be one of relu, gelu, elu, tanh, sigmoid; got 'swish'"):
        ff.Mlp((3,), "swish")
    with pytest.raises(ValueError, match="identity, sigmoid; got 'softmax'"):
        ff.Mlp((3,), output="softmax")
    with pytest.raises(ValueError, match="tied weights cannot be rescaled alone"):
        ff.Mlp((3,), tied=True, unit_norm=True)


@pytest.mark.parametrize("tied", [False, True])
def test_a_deep_network_in_a_model_file(tied, tmp_path):
    network = ff.Mlp((9, 7), "elu", tied=tied, output="sigmoid")
    model = ff.Autoencoder((3, 4), 20, "sigmoid", network=network, seed=3)
    ff.save(model, tmp_path)
    again, x = ff.load(tmp_path), random(6, 3, 4)
    assert again.config() == model.config()
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")  # three hundred steps are no training
@pytest.mark.parametrize(
    ("activation", "hidden_activation", "steps", "at_least"),
    [("topk", "relu", 300, 0.75), ("sigmoid", "relu", 300, 0.75), ("sigmoid", "sigmoid", 600, 0.4)],
)
def test_deep_networks_learn_the_digits(activation, hidden_activation, steps, at_least):
    """Far beyond the mean predictor, whose explained variance is 0."""
    network = ff.Mlp((128, 64), hidden_activation)
    model = ff.Autoencoder(64, 128, activation, network=network, preprocess="center")
    config = ff.TrainConfig(steps=steps, learning_rate=3e-3)
    trainer = ff.Trainer(model, ff.digits(), config=config, progress=False)
    first, *_, last = [record["loss"] for record in trainer.fit() if "loss" in record]
    assert last < 0.7 * first
    assert trainer.summary["explained_variance"] > at_least
