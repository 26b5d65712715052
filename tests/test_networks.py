"""Encoders and decoders: the maps they compute, where they start, and the constraint they keep."""

import math

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire import rng
from fewfire.networks import Decoder, LinearDecoder, LinearEncoder, Network, Sizes


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
