"""The Autoencoder: two spaces, dtypes, rows that do not depend on their neighbours, copies that are never stale."""

import copy
import itertools
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fewfire as ff
from fewfire.activations import Activation
from fewfire.contracts import SparseCodes, TrainState
from fewfire.networks import Network
from fewfire.preprocess import Preprocess


def ours(family):
    return [n for n, member in family.registry.items() if member.__module__.startswith("fewfire")]


PREPROCESSES = [None, *(n for n in ours(Preprocess) if n != "chain"), ["row_mean", "whiten"]]


def data(n=150, width=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) * 2 + 1).to(dtype)


def make(activation="topk", preprocess=None, width=12, n_latents=24, rows=None, **settings):
    """A model whose preprocess is fitted and whose biases are not zero."""
    model = ff.Autoencoder(width, n_latents, activation, preprocess=preprocess, **settings)
    if model.preprocess is not None:
        model.preprocess.fit(lambda: [data(width=width) if rows is None else rows])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for bias in [p for n, p in model.named_parameters() if n.rpartition(".")[2] in ("b_enc", "b_dec")]:
            bias.copy_(torch.randn(bias.shape, generator=generator) / 4)
    return model


# -------------------------------------------------------------------------------------- two spaces


@pytest.mark.parametrize("preprocess", PREPROCESSES, ids=str)
def test_data_space_is_model_space_between_two_preprocesses(preprocess):
    model, x = make("relu", preprocess), data()
    inside = model(model.to_model_space(x))
    assert torch.allclose(model.encode(x), inside.latents, atol=1e-5)
    expected = model.target_to_data_space(inside.recon, like=x)
    assert torch.allclose(model.decode(inside.latents, like=x), expected, atol=1e-4)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x), like=x))
    if preprocess is not None:
        assert not torch.allclose(model.encode(x), model(x).latents, atol=1e-2), "the preprocess did nothing"


def test_by_hand():
    """preprocess, encoder, ReLU, decoder and back, in numpy's float64."""
    model, x = make("relu", "standardize"), data(dtype=torch.float64)
    W, b = model.encoder.W_enc.detach().double().numpy(), model.encoder.b_enc.detach().double().numpy()
    V, c = model.decoder.W_dec.detach().double().numpy(), model.decoder.b_dec.detach().double().numpy()
    rows = data().double().numpy()
    mean, std = rows.mean(0), rows.std(0)
    latents = np.maximum((x.numpy() - mean) / std @ W.T + b, 0)
    assert np.abs(model.encode(x).numpy() - latents).max() < 1e-12
    assert np.abs(model.reconstruct(x).numpy() - ((latents @ V + c) * std + mean)).max() < 1e-12


def test_like_lends_what_was_removed_from_each_row():
    model, x = make("relu", "row_mean"), data()
    codes = model.encode(x)
    gained = model.decode(codes, like=x) - model.decode(codes)
    assert torch.allclose(gained, x.mean(1, keepdim=True).expand_as(x), atol=1e-5)


def test_like_may_be_numpy():
    model, x = make("relu", "row_mean"), data()
    codes = model.encode(x)
    assert torch.equal(model.decode(codes.numpy(), like=x.numpy()), model.decode(codes, like=x))


def test_targets_have_a_preprocess_of_their_own():
    x, y = data(), data(width=7, seed=5) * 10
    model = ff.Autoencoder(12, 24, "relu", d_out=7, preprocess="standardize", preprocess_out="minmax")
    model.preprocess.fit(lambda: [x])
    model.preprocess_out.fit(lambda: [y])
    inside = model(model.to_model_space(x))
    assert torch.equal(model.target_to_model_space(y), model.preprocess_out(y))
    assert torch.allclose(model.reconstruct(x), model.preprocess_out.inverse(inside.recon), atol=1e-3)


def test_targets_of_the_same_shape_may_have_a_preprocess_of_their_own_too():
    x, y = data(), data(seed=5) * 10
    model = ff.Autoencoder(12, 24, "relu", preprocess="standardize", preprocess_out="minmax")
    model.preprocess.fit(lambda: [x])
    model.preprocess_out.fit(lambda: [y])
    assert torch.equal(model.target_to_model_space(y), model.preprocess_out(y))
    inside = model(model.to_model_space(x))
    assert torch.allclose(model.reconstruct(x), model.preprocess_out.inverse(inside.recon), atol=1e-3)


def test_a_target_of_another_shape_has_no_preprocess_unless_told():
    x = data()
    model = ff.Autoencoder(12, 24, "relu", d_out=7, preprocess="standardize")
    model.preprocess.fit(lambda: [x])
    y = data(width=7)
    assert model.target_to_model_space(y) is y
    assert torch.allclose(model.reconstruct(x), model(model.to_model_space(x)).recon, atol=1e-5)


@pytest.mark.parametrize(("d_in", "d_out"), [(12, None), ((3, 4), None), ((2, 6), (3, 5)), (12, (2, 7))])
def test_shapes(d_in, d_out):
    model = ff.Autoencoder(d_in, 24, d_out=d_out)
    x = torch.zeros(5, *model.input_shape)
    out = model(x)
    target = model.input_shape if d_out is None else model.target_shape
    assert out.pre_acts.shape == out.latents.shape == model.encode(x).shape == (5, 24)
    assert out.recon.shape == model.reconstruct(x).shape == model.decode(out.latents).shape == (5, *target)


def test_forward_without_a_target_aims_at_its_input():
    model, x, y = make(), data(), data(seed=3)
    assert model(x).x is x
    out = model(x, y)
    assert out.x is y
    assert out.x_in is x
    assert torch.equal(out.recon, model(x).recon)


def test_a_sigmoid_output():
    model, x = make("sigmoid", network={"name": "linear", "output": "sigmoid"}), data()
    out = model(x)
    assert torch.equal(out.recon, torch.sigmoid(out.recon_logits))
    assert torch.allclose(model.reconstruct(x), out.recon, atol=1e-6)
    linear = make("sigmoid")(x)
    assert linear.recon is linear.recon_logits


@pytest.mark.parametrize("output", ["identity", "sigmoid"])
@pytest.mark.parametrize("activation", ours(Activation))
def test_gives(activation, output):
    if "residual" in Activation.registry[activation].needs and output == "sigmoid":
        with pytest.raises(ValueError, match=f"'{activation}' needs residual.*output identity, got sigmoid"):
            make(activation, network={"name": "linear", "output": output})
        return
    gives = make(activation, network={"name": "linear", "output": output}).gives
    assert Activation.registry[activation].gives <= gives
    assert ("linear_decoder" in gives) == (output == "identity")
    assert ("output_logits" in gives) == (output == "sigmoid")


# -------------------------------------------------------------------------------------- dtypes

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("kept", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", DTYPES, ids=str)
def test_what_float32_cannot_hold_gives_float64_and_everything_else_float32(given, kept):
    model = make("relu", "standardize", dtype=kept)
    x = data().abs().to(given)
    expected = torch.float64 if given in (torch.float64, torch.int64) else torch.float32
    codes = model.encode(x)
    assert codes.dtype == expected
    assert model.reconstruct(x).dtype == expected
    assert model.encode_sparse(x).values.dtype == expected
    assert model.encode_sparse(x).indices.dtype == torch.int64
    assert model.decode(codes.to(given)).dtype == expected
    assert model.dtype == kept, "asking changed the model"


@pytest.mark.parametrize("kind", ["f8", "f4", "f2", "i8", "i2", "u1", "u2", "?"])
def test_numpy_as_torch(kind):
    model, x = make("relu"), data().abs().numpy().astype(kind)
    expected = model.encode(torch.as_tensor(x.astype("f8" if kind in ("f8", "i8") else "f4")))
    assert torch.equal(model.encode(x), expected)


def test_float64_is_computed_in_float64():
    model, x = make("relu", "whiten"), data(dtype=torch.float64)
    fine, coarse = model.encode(x), model.encode(x.float())
    assert not torch.equal(fine.float(), coarse)
    assert torch.allclose(fine.float(), coarse, atol=1e-5)
    assert torch.allclose(fine, copy.deepcopy(model).double()(model.to_model_space(x)).latents, atol=1e-13)


def test_float16_rows_of_norm_1280_do_not_overflow():
    model = make("relu", "center", width=64, rows=data(width=64))
    x = torch.full((3, 64), 2000.0, dtype=torch.float16)
    assert model.reconstruct(x).isfinite().all()
    assert torch.equal(model.encode(x), model.encode(x.float()))


def test_lists_and_other_layouts_in_memory():
    model, x = make("relu"), data(20).numpy()
    expected = model.encode(x)
    wide = np.repeat(x, 2, axis=1)
    for same in (np.asfortranarray(x), wide[:, ::2], torch.as_tensor(x).T.contiguous().T):
        assert torch.allclose(model.encode(same), expected, atol=1e-6)
    assert torch.allclose(model.encode(x.tolist()).float(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["read-only", "backwards", "big-endian", "longdouble"])
def test_memory_that_torch_cannot_borrow(kind):
    model, x = make("relu"), data(20).numpy()
    given = {
        "read-only": x.copy(),
        "backwards": x[::-1].copy()[::-1],
        "big-endian": x.astype(">f4"),
        "longdouble": x.astype(np.longdouble),
    }[kind]
    given.setflags(write=kind != "read-only")
    assert torch.allclose(model.encode(given).float(), model.encode(x), atol=1e-6)


@pytest.mark.parametrize(
    "x",
    [
        np.ma.masked_greater(np.ones((3, 12)), 0),
        np.ones((3, 12), complex),
        torch.ones(3, 12, dtype=torch.complex64),
        np.full((3, 12), "1", dtype=object),
        np.ones((3, 12)).astype(str),
        np.zeros((3, 12), "datetime64[s]"),
        torch.ones(3, 12).to_sparse(),
        None,
    ],
    ids=["masked", "complex", "complex tensor", "object", "text", "dates", "sparse", "None"],
)
def test_what_is_no_real_number_is_refused(x):
    with pytest.raises(TypeError, match=r"x .*(numbers|mask|sparse)"):
        make().encode(x)


def test_nothing_is_tracked_written_or_shared():
    model = make("relu", "standardize")
    x = data().requires_grad_()
    before = x.detach().clone()
    for given in (model.encode(x), model.encode_sparse(x).values, model.reconstruct(x)):
        assert not given.requires_grad
        given.fill_(7)
    assert torch.equal(x, before)
    identity = make("relu")
    codes = identity.encode(x.detach())
    kept = codes.clone()
    identity.decode(codes).fill_(7)
    assert torch.equal(codes, kept)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("activation", ["topk", "sigmoid"])
def test_the_default_dtype_is_left_alone_and_changes_nothing(activation):
    expected = ff.Autoencoder(12, 24, activation).state_dict()
    torch.set_default_dtype(torch.float64)
    try:
        model = ff.Autoencoder(12, 24, activation)
        model.encode(data())
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert model.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_first_weights_are_a_function_of_the_seed():
    a, b, c = (ff.Autoencoder(12, 24, seed=s).state_dict() for s in (3, 3, 4))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert not torch.equal(a["encoder.W_enc"], c["encoder.W_enc"])
    double = ff.Autoencoder(12, 24, "sigmoid", seed=3, dtype=torch.float64).state_dict()
    single = ff.Autoencoder(12, 24, "sigmoid", seed=3).state_dict()
    assert all(torch.equal(double[n].float(), single[n]) for n in single)


# -------------------------------------------------------------------------------------- rows


def test_no_rows_and_one_row():
    model = make("relu", "row_mean")
    assert model.encode(data(0)).shape == (0, 24)
    assert model.reconstruct(data(0)).shape == (0, 12)
    codes = model.encode_sparse(data(0))
    assert codes.indices.shape == codes.values.shape == (0, 1)
    assert model.decode(codes).shape == (0, 12)
    assert model.reconstruct(data(1)).shape == (1, 12)


SHAPES = [
    # the second half: rows that are no multiple of a vector register
    (12, 24, torch.float32),
    (12, 24, torch.float64),
    (768, 1024, torch.float32),
    (768, 1024, torch.float64),
    (33, 77, torch.float32),
    (33, 77, torch.float64),
    (41, 11, torch.float32),
    (5, 7, torch.float64),
    (785, 100, torch.float64),
]


@pytest.mark.parametrize("preprocess", [None, "standardize", "whiten", "row_mean"], ids=str)
@pytest.mark.parametrize(("width", "n_latents", "dtype"), SHAPES, ids=str)
def test_a_row_alone_has_the_bits_it_has_in_a_batch(width, n_latents, dtype, preprocess):
    if preprocess == "whiten" and width > 700:
        width -= 512  # fitting it takes width^3
    x = data(150, width, dtype)
    for tied, activation in ((False, "relu"), (True, "sigmoid")):
        network = {"name": "linear", "tied": tied}
        model = make(activation, preprocess, width, n_latents, rows=x, network=network)
        together = model.encode(x)
        for i in (0, 1, 2, 31, 63, 64, 65, 128, 149):
            assert torch.equal(model.encode(x[i : i + 1])[0], together[i]), (i, activation)
        assert torch.equal(model.encode(x[3:80]), together[3:80])


@pytest.mark.parametrize("layout", ["columns first", "strided", "numpy"])
def test_how_a_batch_lies_in_memory_does_not_show(layout):
    x = data(70, 768, torch.float64)
    given = {
        "columns first": x.T.contiguous().T,
        "strided": torch.cat([x, x], 1)[:, :768],
        "numpy": x.numpy(),
    }[layout]
    model = make("relu", width=768, n_latents=128)
    assert torch.equal(model.encode(given), model.encode(x))


@pytest.mark.parametrize(("width", "n_latents", "dtype"), [(64, 92, torch.float64), (48, 9, torch.float32)], ids=str)
def test_where_a_batch_begins_in_memory_does_not_show(width, n_latents, dtype):
    x = data(70, width, dtype)
    room = torch.zeros(x.numel() + 1, dtype=dtype)
    moved = room[1:].view_as(x).copy_(x)
    model = make("relu", width=width, n_latents=n_latents)
    assert torch.equal(model.encode(moved), model.encode(x))


def test_neighbours_do_not_matter_not_even_loud_ones():
    model, x = make("topk", "standardize"), data()
    loud = x * 1e6
    loud[9], loud[70] = x[9], x[70]
    got, expected = model.encode(loud), model.encode(x)
    assert torch.equal(got[9], expected[9])
    assert torch.equal(got[70], expected[70])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_is_named(bad):
    model, x = make("topk", "standardize"), data()
    x[10, 3] = bad
    for verb in (model.encode, model.encode_sparse, model.reconstruct):
        with pytest.raises(ValueError, match=r"x holds (NaN|infinity), first in row 10, column 3, 1 of"):
            verb(x)


# -------------------------------------------------------------------------------------- sparse codes


@pytest.mark.parametrize("activation", ours(Activation))
def test_sparse_codes_hold_what_is_not_zero(activation):
    model, x = make(activation), data()
    dense = model.encode(x)
    codes = model.encode_sparse(x)
    assert codes.indices.shape == codes.values.shape == (150, int((dense != 0).sum(1).max()))
    rebuilt = torch.zeros_like(dense)
    for row, (indices, values) in enumerate(zip(codes.indices, codes.values, strict=True)):
        kept = values != 0
        assert len(set(indices[kept].tolist())) == int(kept.sum()), "an index twice"
        assert (indices[~kept] == 0).all(), "padding is value 0 at index 0"
        rebuilt[row, indices[kept]] = values[kept]
    assert torch.equal(rebuilt, dense)
    torch.testing.assert_close(model.decode(codes), model.decode(dense), rtol=1e-5, atol=1e-5)


def test_negative_latents_are_kept():
    class SignedInTest(Activation):
        def forward(self, pre_acts, state=None):
            return pre_acts * (pre_acts.abs() > 1)

    try:
        model, x = make("signedintest"), data()
        dense = model.encode(x)
        assert (dense < 0).any()
        torch.testing.assert_close(model.decode(model.encode_sparse(x)), model.decode(dense), rtol=1e-5, atol=1e-5)
    finally:
        del Activation.registry["signedintest"]


def test_topk_keeps_the_largest_and_nothing_negative():
    pre_acts = torch.tensor([[3.0, -5.0, 1.0, 2.0], [-1.0, 4.0, -2.0, -3.0], [-1.0, -1.0, -2.0, -3.0]])
    expected = [[3.0, 0.0, 0.0, 2.0], [0.0, 4.0, 0.0, 0.0], [0.0] * 4]
    assert ff.TopK(k=2)(pre_acts).tolist() == expected


def test_rows_that_fire_nothing():
    model = make("relu")
    with torch.no_grad():
        model.encoder.b_enc.fill_(-1e6)
    codes = model.encode_sparse(data())
    assert codes.values.abs().sum() == 0
    assert codes.indices.abs().sum() == 0
    assert torch.allclose(model.decode(codes), model.decoder.b_dec.detach().expand(150, 12))


def test_padding_adds_nothing_to_latent_zero():
    codes = SparseCodes(torch.tensor([[0, 3], [3, 0]]), torch.tensor([[2.0, 1.0], [1.0, 0.0]]))
    model = make("relu")
    dense = torch.zeros(2, 24)
    dense[0, 0], dense[0, 3], dense[1, 3] = 2, 1, 1
    torch.testing.assert_close(model.decode(codes), model.decode(dense), rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------- never stale


def scale(model):
    with torch.no_grad():
        model.encoder.W_enc.mul_(2)


def optimise(model):
    rule = torch.optim.SGD(model.parameters(), lr=0.1)
    model(data()).recon.square().sum().backward()
    rule.step()


def train(model):
    config = ff.TrainConfig(steps=3, batch_size=50, learning_rate=0.1)
    ff.Trainer(model, ff.ArraySource(data()), [ff.MSE()], config, progress=False).fit()


def fit_again(model):
    model.preprocess.fit(lambda: [data() * 5])


CHANGES = {
    "in place": scale,
    "optimizer": optimise,
    "trained": train,
    "load_state_dict": lambda m: m.load_state_dict(make("topk", "standardize", seed=9).state_dict()),
    "assigned": lambda m: m.load_state_dict(make("topk", "standardize", seed=9).state_dict(), assign=True),
    "new parameter": lambda m: setattr(m.encoder, "b_enc", torch.nn.Parameter(torch.ones(24))),
    "data replaced": lambda m: setattr(m.encoder.W_enc, "data", m.encoder.W_enc.data * 2),
    "preprocess fitted again": fit_again,
    "rounded": lambda m: m.bfloat16().float(),
    "behind autograd's back": lambda m: m.encoder.W_enc.data.mul_(2),
    "through numpy": lambda m: m.encoder.W_enc.detach().numpy().fill(0.5),
    "k": lambda m: setattr(m.activation, "k", 7),
    "preprocess replaced": lambda m: setattr(m, "preprocess", None),
}


@pytest.mark.parametrize("change", [pytest.param(f, id=n) for n, f in CHANGES.items()])
def test_float64_answers_follow_the_model(change):
    """A float32 model answers float64 questions from a copy. It must be a copy of the model as it is."""
    model, x = make(ff.TopK(k=3), "standardize"), data(dtype=torch.float64)
    before = model.encode(x)
    change(model)
    after = model.encode(x)
    assert not torch.equal(after, before), "the change changed nothing; this test shows nothing"
    assert torch.allclose(after.float(), model.encode(x.float()), atol=1e-4)


def test_inference_mode():
    x = data(dtype=torch.float64)
    with torch.inference_mode():
        model = make("topk")
        assert torch.equal(model.encode(x), model.encode(x))
    assert torch.equal(make("topk").encode(x), model.encode(x))


# -------------------------------------------------------------------------------------- copies and sharing


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_copy_is_a_model_of_its_own(how, tied):
    model, x = make("relu", "standardize", network={"name": "linear", "tied": tied}), data()
    expected = model.encode(x), model.encode(x.double()), model.reconstruct(x)
    twin = how(model)
    assert twin.config() == model.config()
    assert torch.equal(twin.reconstruct(x), expected[2])
    with torch.no_grad():
        twin.encoder.W_enc.zero_()
    assert (twin.decoder.W_dec.abs().sum() == 0) == tied, "the copy's decoder reads the copy's encoder"
    got = model.encode(x), model.encode(x.double()), model.reconstruct(x)
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True))


def test_tied_weights_are_one_parameter(tmp_path):
    model = make("sigmoid", network={"name": "linear", "tied": True})
    names = {"encoder.W_enc", "encoder.b_enc", "decoder.b_dec"}
    assert {n for n, _ in model.named_parameters()} == names
    assert set(model.state_dict()) == names
    assert sum(p.numel() for p in model.parameters()) == 24 * 12 + 24 + 12
    ff.save(model, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        sizes = [np.prod(file.get_slice(k).get_shape()) for k in file.keys()]  # noqa: SIM118
    assert sum(sizes) == 24 * 12 + 24 + 12
    for changed in (model, model.double(), model.float(), ff.load(tmp_path / "model")):
        assert changed.decoder.W_dec is changed.encoder.W_enc
    x = data()
    out = model(x)
    assert torch.allclose(out.recon, out.latents @ model.encoder.W_enc + model.decoder.b_dec, atol=1e-5)


def test_tied_weights_get_both_gradients():
    tied = make("sigmoid", network={"name": "linear", "tied": True})
    free = make("sigmoid", network={"name": "linear", "unit_norm": False})
    with torch.no_grad():
        free.encoder.W_enc.copy_(tied.encoder.W_enc)
        free.decoder.W_dec.copy_(tied.encoder.W_enc)
    for model in (tied, free):
        ff.MSE()(model, model(data())).backward()
    both = free.encoder.W_enc.grad + free.decoder.W_dec.grad
    assert torch.allclose(tied.encoder.W_enc.grad, both, rtol=1e-4, atol=1e-4)


def test_one_network_may_serve_two_models():
    """``build`` fills in what an activation prefers; that must not reach the next model."""
    network = ff.Linear()
    ff.Autoencoder(12, 24, "sigmoid", network=network)
    assert ff.Autoencoder(12, 24, "topk", network=network).decoder.unit_norm
    assert network.unit_norm is None


def test_one_activation_may_serve_two_models():
    activation = ff.TopK()
    first = ff.Autoencoder(12, 64, activation)
    assert (first.activation.k, ff.Autoencoder(12, 16, activation).activation.k) == (4, 1)
    first.activation.k = 9
    assert activation.k is None


# -------------------------------------------------------------------------------------- configuration

NETWORKS = [
    {"name": "linear", "tied": tied, "output": output, "unit_norm": unit_norm}
    for tied, output, unit_norm in itertools.product((False, True), ("identity", "sigmoid"), (None, False, True))
    if not (tied and unit_norm)
]
NETWORKS += [n | {"name": "mlp", "hidden": [9, 7]} for n in NETWORKS]
NETWORKS += [
    {"name": "conv", "channels": [5], "latents": latents, "output": output, "unit_norm": unit_norm}
    for latents, output, unit_norm in itertools.product(
        ("vector", "maps"), ("identity", "sigmoid"), (None, False, True)
    )
]


def test_every_network_is_in_these_tests():
    assert {n["name"] for n in NETWORKS} == set(ours(Network))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: "-".join(map(str, n.values())))
@pytest.mark.parametrize("activation", ours(Activation))
def test_config_round_trip(activation, network):
    if network.get("tied") and Activation.registry[activation].n_pre > 1:
        with pytest.raises(ValueError, match="one pre-activation per latent"):
            make(activation, network=network)
        return
    if "residual" in Activation.registry[activation].needs and network.get("output") == "sigmoid":
        with pytest.raises(ValueError, match="needs residual"):
            make(activation, width=(3, 4), network=network)
        return
    model = make(activation, ["row_mean", "standardize"], width=(3, 4), network=network, rows=data().view(-1, 3, 4))
    model.layout = ff.Layout("image", (3, 4))
    config = json.loads(json.dumps(model.config()))
    again = ff.Autoencoder.from_config(config)
    assert again.config() == model.config() == config
    assert config["network"]["unit_norm"] in (True, False), "what build() decided is written down"
    again.load_state_dict(model.state_dict())
    x = data().view(-1, 3, 4)
    assert torch.equal(again.encode(x), model.encode(x))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtype_round_trip(dtype):
    config = ff.Autoencoder(3, 4, dtype=getattr(torch, dtype)).config()
    assert config["dtype"] == dtype
    assert str(ff.Autoencoder.from_config(config).dtype) == f"torch.{dtype}"


def test_defaults_that_depend_on_the_width_are_written_down():
    assert ff.Autoencoder(3, 64).config()["activation"] == {"name": "topk", "k": 4, "alpha": 1.0}
    assert ff.Autoencoder(3, 5).config()["activation"] == {"name": "topk", "k": 1, "alpha": 1.0}


def test_numbers_from_numpy():
    width, n = np.int64(6), np.int32(8)
    model = ff.Autoencoder(width, n, ff.TopK(k=np.int64(2)), d_out=(np.int64(2), 3))
    assert json.loads(json.dumps(model.config())) == model.config()
    assert (model.input_shape, model.n_latents, model.target_shape) == ((6,), 8, (2, 3))


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_unit_norm_is_kept(activation):
    model = ff.Autoencoder(12, 24, activation)
    config = ff.TrainConfig(steps=300, batch_size=50, learning_rate=0.05)
    ff.Trainer(model, ff.ArraySource(data()), config=config, progress=False).fit()
    assert (model.decoder.W_dec.norm(dim=1) - 1).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("activation", "network", "expected"),
    [
        ("topk", {}, True),
        ("relu", {}, True),
        ("sigmoid", {}, False),
        ("sigmoid", {"unit_norm": True}, True),
        ("topk", {"unit_norm": False}, False),
        ("topk", {"tied": True}, False),
        ("topk", {"output": "sigmoid"}, False),
        ("topk", {"output": "sigmoid", "unit_norm": True}, True),
    ],
    ids=str,
)
def test_who_has_unit_norm(activation, network, expected):
    model = ff.Autoencoder(12, 24, activation, network={"name": "linear", **network})
    assert model.decoder.unit_norm == model.decoder.constrained == expected
    assert torch.allclose(model.decoder.W_dec.norm(dim=1), torch.ones(24), atol=1e-5) == expected


def test_state_reaches_the_activation():
    """During training, and never from ``encode``."""
    seen = []

    class Watching(ff.ReLU, name="watching_in_test"):
        def forward(self, pre_acts, state=None):
            seen.append(state)
            return super().forward(pre_acts, state)

    try:
        model = make(Watching())
        state = TrainState(1, 1, torch.zeros(24, dtype=torch.int64), 1e-3)
        model(data(), state=state)
        model.encode(data())
        assert seen[0] is state
        assert set(seen[1:]) == {None}
    finally:
        del Activation.registry["watching_in_test"]


# -------------------------------------------------------------------------------------- what is said

REFUSED = {
    "x: one row": (lambda: make().encode(np.zeros(12)), r"x of shape \(rows, 12\).*\(12,\)"),
    "x: width": (lambda: make().encode(np.zeros((3, 5))), r"x of shape \(rows, 12\).*\(3, 5\)"),
    "x: image": (lambda: ff.Autoencoder((2, 6), 8).encode(np.zeros((3, 12))), r"\(rows, 2, 6\).*\(3, 12\)"),
    "latents": (lambda: make().decode(np.zeros((3, 12))), r"latents of shape \(rows, 24\).*\(3, 12\)"),
    "like": (lambda: make(preprocess="row_mean").decode(torch.zeros(3, 24), torch.zeros(2, 12)), r"like.*\(2, 12\)"),
    "not fitted": (lambda: ff.Autoencoder(3, 4, preprocess="standardize").encode(np.zeros((2, 3))), "not fitted"),
    "activation": (lambda: ff.Autoencoder(3, 4, "topkk"), "unknown activation 'topkk'; choose from.*relu.*topk"),
    "setting": (lambda: ff.Autoencoder(3, 4, {"name": "topk", "kk": 1}), "'topk' has no setting 'kk'.*takes: k"),
    "no setting": (lambda: ff.Autoencoder(3, 4, {"name": "relu", "k": 1}), "no setting 'k'.*nothing"),
    "no name": (lambda: ff.Autoencoder(3, 4, {"k": 1}), "unknown activation None.*choose from"),
    "network": (lambda: ff.Autoencoder(3, 4, network="resnet"), "unknown network 'resnet'.*linear"),
    "output": (lambda: ff.Autoencoder(3, 4, network={"name": "linear", "output": "tanh"}), "identity, sigmoid.*'tanh'"),
    "tied": (lambda: ff.Autoencoder(3, 4, network={"name": "linear", "tied": True}, d_out=5), "tied.*as wide"),
    "tied unit": (lambda: ff.Mlp(tied=True, unit_norm=True), "untied weights with unit_norm"),
    "k > L": (lambda: ff.Autoencoder(3, 4, ff.TopK(k=5)), "at most 4, got 5"),
    "k = 0": (lambda: ff.TopK(k=0), "whole number from 1, got 0"),
    "k = 2.7": (lambda: ff.TopK(k=2.7), "whole number from 1, got 2.7"),
    "k alone": (lambda: ff.TopK()(torch.zeros(2, 3)), "give k"),
    "d_in": (lambda: ff.Autoencoder(0, 4), "d_in.*at least 1; got 0"),
    "n_latents": (lambda: ff.Autoencoder(3, 2.5), "n_latents.*whole number.*2.5"),
    "d_out": (lambda: ff.Autoencoder(3, 4, d_out=(2, -1)), "d_out.*-1"),
    "key": (
        lambda: ff.Autoencoder.from_config({**ff.Autoencoder(3, 4).config(), "depth": 3}),
        r"unknown: \['depth'\]",
    ),
    "missing": (lambda: ff.Autoencoder.from_config({"d_in": 3}), r"missing: \['activation', 'd_out'"),
    "dtype": (lambda: ff.Autoencoder.from_config({**ff.Autoencoder(3, 4).config(), "dtype": "int8"}), "'int8'"),
    "d_in float": (lambda: ff.Autoencoder(3.0, 4), "d_in.*whole number.*3.0"),
    "d_in bool": (lambda: ff.Autoencoder(True, 4), "d_in.*whole number.*True"),
    "d_in empty": (lambda: ff.Autoencoder((), 4), "d_in"),
    "activation class": (lambda: ff.Autoencoder(3, 4, ff.TopK), r"activation.*TopK\("),
    "activation None": (lambda: ff.Autoencoder(3, 4, None), "activation.*None"),
    "indices": (
        lambda: make().decode(SparseCodes(torch.zeros(1, 2, dtype=torch.int64), torch.ones(3, 2))),
        r"indices.*\(1, 2\).*values.*\(3, 2\)",
    ),
}


@pytest.mark.parametrize(("call", "words"), [pytest.param(*case, id=n) for n, case in REFUSED.items()])
def test_refusals_say_what_was_expected_and_what_came(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert len(str(caught.value)) < 400


def test_repr_shows_the_shapes():
    assert "(12,) -> (24,) -> (2, 3)" in repr(ff.Autoencoder(12, 24, d_out=(2, 3)))


def test_a_layout_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"one of table, image, series; got 'img'; did you mean 'image'\?"):
        ff.Layout("img", (8, 8))
    with pytest.raises(ValueError, match="got 3"):
        ff.Layout.from_dict({"kind": 3})
