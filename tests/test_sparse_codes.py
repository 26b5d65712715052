"""Codes found by the compiled kernels are those of the activation, whatever rows stand beside them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fewfire as ff
from fewfire.kernels import native_missing
from fewfire.sparse_codes import finds_codes

pytestmark = pytest.mark.skipif(native_missing() is not None, reason=str(native_missing()))

WIDTH, LATENTS = 160, 300
ACTIVATIONS = {
    "topk": {"name": "topk", "k": 7},
    "more at inference": {"name": "topk", "k": 7, "alpha": 1.5},
    "batchtopk": {"name": "batchtopk", "k": 6.5},
    "jumprelu": {"name": "jumprelu", "threshold": 1.5},
}
each_activation = pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=list(ACTIVATIONS))


def make(activation, **settings):
    model = ff.Autoencoder(WIDTH, LATENTS, activation, seed=2, **settings)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in (model.encoder.W_enc, model.encoder.b_enc, model.decoder.b_dec):
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
        if model.activation.name == "batchtopk":
            model.activation.threshold.fill_(1.2)
    return model


def rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, WIDTH)).astype(np.float32)


@each_activation
@pytest.mark.parametrize("n", [1, 40, 300], ids=["a row", "few", "enough to round to bytes"])
def test_codes_are_the_activations(activation, n):
    model, x = make(activation), rows(n)
    assert finds_codes(model)
    with torch.no_grad():
        there = model(torch.from_numpy(x))
    codes = model.encode_sparse(x)
    assert codes.indices.dtype == torch.int64
    assert codes.indices.shape == codes.values.shape
    assert codes.indices.shape[1] == max(1, int((there.latents != 0).sum(1).max()))
    torch.testing.assert_close(model.encode(x), there.latents)
    torch.testing.assert_close(model.decode(codes), there.recon, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.reconstruct(x), there.recon, rtol=1e-5, atol=1e-5)


@each_activation
@pytest.mark.parametrize("preprocess", [None, "standardize", "whiten"])
def test_a_row_alone_has_the_bits_it_has_among_others(activation, preprocess):
    model, x = make(activation, preprocess=preprocess), rows(300)
    if preprocess:
        model.preprocess.fit(lambda: iter([torch.from_numpy(rows(2000, seed=1))]))
    together, written = model.encode(x), model.reconstruct(x)
    for i in (0, 17, 299):
        assert torch.equal(model.encode(x[i : i + 1])[0], together[i])
        if preprocess != "whiten":  # whose way back is a product of whole matrices
            assert torch.equal(model.reconstruct(x[i : i + 1])[0], written[i])


def test_no_row_and_rows_of_zeros():
    model = make(ACTIVATIONS["topk"])
    assert model.encode(rows(0)).shape == (0, LATENTS)
    assert model.encode_sparse(rows(0)).indices.shape == (0, 1)
    biases = model.encoder.b_enc.detach()
    codes = model.encode(np.zeros((2, WIDTH), np.float32))
    assert torch.equal(codes[0], codes[1])
    assert torch.equal(codes[0].nonzero().squeeze(1), biases.topk(7).indices.sort().values)


def test_who_may_fire_otherwise_is_asked_itself():
    class Halved(ff.TopK):
        def forward(self, pre_acts, state=None):
            return super().forward(pre_acts, state) / 2

    x = rows(9)
    whole, half = make({"name": "topk", "k": 7}), make(Halved(k=7))
    assert not finds_codes(half)
    torch.testing.assert_close(half.encode(x), whole.encode(x) / 2)
    handle = whole.encoder.register_forward_hook(lambda module, inputs, output: output * 0)
    assert not finds_codes(whole)
    assert not whole.encode(x).any()
    handle.remove()
    assert finds_codes(whole)


@pytest.mark.parametrize("network", [{"name": "mlp", "hidden": [8]}], ids=str)
def test_other_models_are_encoded_as_before(network):
    model = ff.Autoencoder(WIDTH, LATENTS, ACTIVATIONS["topk"], network=network)
    assert not finds_codes(model)
    assert not finds_codes(make(ACTIVATIONS["topk"]).double())
    assert model.encode_sparse(rows(5)).indices.shape == (5, 7)


def test_threads_of_python_do_not_meet():
    models = [make(a) for a in ACTIVATIONS.values()]
    x = rows(600)
    alone = [m.encode(x) for m in models]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for here, there in zip(pool.map(lambda m: m.encode(x), models), alone, strict=True):
                assert torch.equal(here, there)


@pytest.mark.parametrize("activation", ["topk", "sigmoid", ff.JumpReLU()], ids=str)
def test_codes_as_a_matrix_of_scipy(activation):
    model = ff.Autoencoder(20, 50, activation)
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    x[3] = 0
    codes = model.encode_sparse(x).to_scipy(50)
    assert codes.has_canonical_format
    assert codes.nnz == int((model.encode(x) != 0).sum()), "what fills up a row is no entry"
    np.testing.assert_array_equal(codes.toarray(), model.encode(x).numpy())
