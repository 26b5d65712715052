"""Peers' files: what they computed is what is computed here; what is written comes back the same; nothing is guessed.

The recorded numbers were computed by the peers themselves (sae-lens 6.54.12, dictionary-learning 0.1.0, eai-sparsify
1.3.3) with the weights below, and the configurations are those that they wrote. `benchmarks/peer_files.py` compares
both ways with the libraries themselves.
"""

import json
import os
import pickle
import random
import re
import sys
import zipfile
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

import fewfire as ff
from fewfire import cli, files
from fewfire.activations import Activation
from fewfire.conversion import TARGETS, convert, is_foreign, open_foreign
from fewfire.formats import PEERS, dictionary_learning, saelens, selftest, sparsify
from fewfire.runs import open_run

# ------------------------------------------------------------------------------------------ recorded numbers

X = torch.tensor([[1.0, 2.0, -0.5], [-1.5, 0.5, 2.0], [2.5, -1.0, 0.75]])
W_ENC = torch.tensor([[0.9, -0.3, 0.2], [-0.5, 0.8, 0.1], [0.4, 0.6, -0.7], [0.1, -0.9, 0.5]])
W_DEC = torch.tensor([[0.8, -0.1, 0.3], [-0.4, 0.9, 0.2], [0.6, 0.5, -1.2], [0.2, -0.7, 0.4]])
B_ENC, B_DEC = torch.tensor([0.1, -0.2, 0.3, 0.05]), torch.tensor([0.5, -1.0, 0.25])
THRESHOLD, R_MAG = torch.tensor([0.2, 0.5, 0.9, 0.1]), torch.tensor([0.3, -0.2, 0.1, 0.0])
B_MAG, SCALAR = torch.tensor([-0.1, 0.2, 0.05, 0.15]), torch.tensor(0.6)
GATES = {"r_mag": R_MAG, "b_gate": B_ENC, "b_mag": B_MAG}

RELU = (
    [[0, 1.875, 2.825, 0], [0, 2.175, 0, 0], [2, 0, 0.75, 0.5]],
    [
        [1.445, 2.1, -2.765],
        [-0.37, 0.9575, 0.685],
        [2.65, -1.175, 0.15],
    ],
)
JUMP = [[0, 1.875, 2.825, 0], [0, 2.175, 0, 0], [2, 0, 0, 0.5]], [*RELU[1][:2], [2.2, -1.55, 1.05]]
TWO = [[0, 1.875, 2.825, 0], [0, 2.175, 0, 0], [2, 0, 0.75, 0]], [*RELU[1][:2], [2.55, -0.825, -0.05]]
RESCALED = [[0, 1.884352, 4.044785, 0], [0, 2.185848, 0, 0], [1.720465, 0, 1.073837, 0]], TWO[1]
GATED = (
    [[0, 1.898866, 2.840557, 0], [0, 2.144486, 0, 0], [2.464732, 0, 0.547327, 0.6]],
    [
        [1.444788, 2.129258, -2.778895],
        [-0.357794, 0.930037, 0.678897],
        [2.920182, -1.39281, 0.572627],
    ],
)
PURSUIT = (
    [[0, 2.431, 2.7, 0], [0, 2.5, 0, 0.825], [1.75, 0, 0.4775, 0]],
    [
        [1.1476, 2.5379, -2.5038],
        [-0.335, 0.6725, 1.08],
        [2.1865, -0.93625, 0.202],
    ],
)
BARE = (
    [[0.3, 0.85, 2.25, 0], [0, 1.15, 0, 0.45], [2.8, 0, 0.175, 1.575]],
    [
        [1.75, 0.86, -2.19],
        [0.13, -0.28, 0.66],
        [3.16, -2.295, 1.51],
    ],
)
BARE_JUMP = [*BARE[0][:2], [2.8, 0, 0, 1.575]], [*BARE[1][:2], [3.055, -2.3825, 1.72]]
BARE_TWO = [[0, 0.85, 2.25, 0], *BARE_JUMP[0][1:]], [[1.51, 0.89, -2.28], *BARE_JUMP[1][1:]]
ACROSS = BARE_JUMP[0], [row[:2] for row in BARE_JUMP[1]]


def saelens_settings(architecture, **more):
    common = {"d_in": 3, "d_sae": 4, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True}
    common |= {"normalize_activations": "none", "reshape_activations": "none"}
    metadata = {"sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12"}
    return {**common, "metadata": metadata, "architecture": architecture, **more}


def of_saelens(architecture, tensors=None, **settings):
    own = {"W_enc": W_ENC.T, "W_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC, **(tensors or {})}
    return saelens, saelens_settings(architecture, **settings), {k: v for k, v in own.items() if v is not None}


def of_dictionary_learning(kind, tensors, **settings):
    trainer = {"dict_class": kind, "trainer_class": "T", "activation_dim": 3, "dict_size": 4, "lr": 1e-3, **settings}
    return dictionary_learning, {"trainer": trainer, "buffer": {"ctx_len": 128}}, tensors


def of_sparsify(**settings):
    given = {"activation": "topk", "expansion_factor": 32, "normalize_decoder": True, "num_latents": 4, "k": 2}
    given |= {"multi_topk": False, "skip_connection": False, "transcode": False, "d_in": 3}
    tensors = {"encoder.weight": W_ENC, "encoder.bias": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
    return sparsify, given | settings, tensors


LAYERS = {"encoder.weight": W_ENC, "decoder.weight": W_DEC.T.contiguous()}
PARAMETERS = {"W_enc": W_ENC.T.contiguous(), "b_enc": B_ENC, "W_dec": W_DEC, "b_dec": B_DEC}
COUNTED = {"k": torch.tensor(2, dtype=torch.int32), "threshold": SCALAR}
BATCH = {
    "decoder_init_norm": 0.1,
    "k": 1.5,
    "use_sparse_activations": False,
    "aux_loss_coefficient": 1.0,
    "rescale_acts_by_decoder_norm": True,
    "topk_threshold_lr": 0.01,
}
ROUNDS = {"residual_threshold": 0.0, "max_iterations": 2, "stop_on_duplicate_support": False}
LINEAR = {**LAYERS, "encoder.bias": B_ENC}
GATED_KEYS = {"decoder_bias": B_DEC, "r_mag": R_MAG, "gate_bias": B_ENC, "mag_bias": B_MAG}
GROUPS = {"group_sizes": torch.tensor([1, 3])}

RECORDED = {
    "saelens standard": (*of_saelens("standard"), RELU),
    "saelens topk": (*of_saelens("topk", k=2, rescale_acts_by_decoder_norm=True), RESCALED),
    "saelens jumprelu": (*of_saelens("jumprelu", {"threshold": THRESHOLD}), JUMP),
    "saelens jumprelu, log": (*of_saelens("jumprelu", {"log_threshold": THRESHOLD.log()}), JUMP),
    "saelens gated": (*of_saelens("gated", {**GATES, "b_enc": None}), GATED),
    "saelens batchtopk": (*of_saelens("batchtopk", {"topk_threshold": SCALAR.double()}, **BATCH), RESCALED),
    "saelens pursuit": (*of_saelens("matching_pursuit", {"W_enc": None, "b_enc": None}, **ROUNDS), PURSUIT),
    "saelens transcoder": (
        *of_saelens(
            "jumprelu_transcoder",
            {"W_dec": W_DEC[:, :2], "b_dec": B_DEC[:2], "threshold": THRESHOLD},
            d_out=2,
            apply_b_dec_to_input=False,
        ),
        ACROSS,
    ),
    "saelens 3, flat": (
        saelens,
        {
            "d_in": 3,
            "d_sae": 4,
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": 2},
            "context_size": 128,
            "hook_point": "blocks.0.hook_resid_post",
            "normalize_activations": False,
            "dtype": "torch.float32",
        },
        {**PARAMETERS, "scaling_factor": torch.ones(4)},
        TWO,
    ),
    "AutoEncoder": (*of_dictionary_learning("AutoEncoder", {**LINEAR, "bias": B_DEC}), RELU),
    "AutoEncoderNew": (*of_dictionary_learning("AutoEncoderNew", {**LINEAR, "decoder.bias": B_DEC}), BARE),
    "GatedAutoEncoder": (*of_dictionary_learning("GatedAutoEncoder", {**LAYERS, **GATED_KEYS}), GATED),
    "JumpReluAutoEncoder": (
        *of_dictionary_learning("JumpReluAutoEncoder", {**PARAMETERS, "threshold": THRESHOLD}),
        BARE_JUMP,
    ),
    "AutoEncoderTopK": (*of_dictionary_learning("AutoEncoderTopK", {**LINEAR, "b_dec": B_DEC, **COUNTED}, k=2), TWO),
    "BatchTopKSAE": (*of_dictionary_learning("BatchTopKSAE", {**LINEAR, "b_dec": B_DEC, **COUNTED}, k=2), TWO),
    "MatryoshkaBatchTopKSAE": (
        *of_dictionary_learning("MatryoshkaBatchTopKSAE", {**PARAMETERS, **COUNTED, **GROUPS}, k=2, group_sizes=[1, 3]),
        TWO,
    ),
    "sparsify": (*of_sparsify(), TWO),
    "sparsify transcoder": (*of_sparsify(transcode=True), BARE_TWO),
}


def put(folder, peer, settings, tensors):
    """A folder as the peer writes it."""
    folder.mkdir()
    (folder / peer.CONFIG).write_text(json.dumps(settings))
    if peer is dictionary_learning:
        torch.save(tensors, folder / peer.WEIGHTS)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / peer.WEIGHTS)
    return folder


@pytest.fixture
def recorded(tmp_path):
    return lambda name: put(tmp_path / "theirs", *RECORDED[name][:3])


@pytest.mark.parametrize("name", RECORDED)
def test_computes_what_the_peer_computed(recorded, name):
    folder = recorded(name)
    model = ff.load(folder)
    latents, recon = map(torch.tensor, RECORDED[name][3])
    torch.testing.assert_close(model.encode(X), latents, atol=2e-6, rtol=0)
    torch.testing.assert_close(model.reconstruct(X), recon, atol=2e-6, rtol=0)
    assert torch.equal(ff.load(folder / RECORDED[name][0].WEIGHTS).encode(X), model.encode(X))


@pytest.mark.parametrize("name", RECORDED)
def test_training_goes_on_from_it(recorded, name):
    """Thresholds from a file stay, but BatchTopK's, which its k decides; decoder rows of other norms keep them."""
    model = ff.load(recorded(name))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    source = ff.ArraySource(X.repeat(8, 1)) if model.input_shape == model.target_shape else None
    if source is not None:
        ff.Trainer(model, source, [ff.MSE()], ff.TrainConfig(steps=1, learning_rate=1e-9), progress=False).fit()
    measured = {"activation.seen", "activation.threshold"} if model.activation.name == "batchtopk" else set()
    for n, tensor in model.state_dict().items():
        if n not in measured:
            torch.testing.assert_close(tensor, before[n], atol=0.05, rtol=0, msg=n)


# ------------------------------------------------------------------------------------------------ round trips


def fitted(activation, d_out=None, **settings):
    generator = torch.Generator().manual_seed(1)
    settings = {"preprocess": "standardize", **settings}
    model = ff.Autoencoder(6, 12, activation, d_out=d_out, **settings)
    rows = torch.randn(200, 6, generator=generator) + 3 * torch.randn(6, generator=generator)
    for preprocess, width in ((model.preprocess, 6), (model.preprocess_out, d_out or 6)):
        if preprocess is not None:
            preprocess.fit(lambda width=width: [rows[:, :width]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        if hasattr(model.activation, "threshold"):
            threshold = model.activation.threshold
            threshold.copy_(0.2 + 0.1 * torch.rand(threshold.shape, generator=generator))
    return model, rows


def plain_pursuit():
    model, rows = fitted({"name": "matching_pursuit", "k": 3}, preprocess=None)
    with torch.no_grad():
        model.encoder.W_enc.div_(model.encoder.W_enc.norm(dim=1, keepdim=True))
        model.encoder.b_enc.copy_(-model.encoder.W_enc @ model.decoder.b_dec)
    return model, rows


OURS = {
    "relu": partial(fitted, "relu"),
    "plain": partial(fitted, {"name": "plain", "function": "relu"}),
    "tied": partial(fitted, "relu", network={"name": "linear", "tied": True}),
    "topk": partial(fitted, {"name": "topk", "k": 3}),
    "topk alpha": partial(fitted, {"name": "topk", "k": 2, "alpha": 1.7}),
    "batchtopk": partial(fitted, {"name": "batchtopk", "k": 3}),
    "batchtopk fraction": partial(fitted, {"name": "batchtopk", "k": 2.5}),
    "jumprelu": partial(fitted, "jumprelu"),
    "gated": partial(fitted, "gated"),
    "wta": partial(fitted, "wta"),
    "wta dense": partial(fitted, {"name": "wta", "sparse_inference": False}),
    "pursuit": plain_pursuit,
    "float64": partial(fitted, "jumprelu", dtype=torch.float64),
    "bfloat16": partial(fitted, {"name": "topk", "k": 3}, dtype=torch.bfloat16),
    "center": partial(fitted, "jumprelu", preprocess="center"),
    "minmax": partial(fitted, "jumprelu", preprocess={"name": "minmax", "per_column": False}),
    "whiten": partial(fitted, {"name": "topk", "k": 3}, preprocess="whiten"),
    "chain": partial(fitted, {"name": "topk", "k": 3}, preprocess=["whiten", "minmax", "center"]),
    "chain back": partial(fitted, {"name": "topk", "k": 3}, preprocess=["minmax", "whiten"]),
    "transcoder": partial(fitted, "relu", d_out=4, preprocess_out="standardize"),
    "transcoder jumprelu": partial(fitted, "jumprelu", d_out=4, preprocess_out="minmax"),
    "transcoder batchtopk": partial(fitted, {"name": "batchtopk", "k": 3}, d_out=4),
    "transcoder topk": partial(fitted, {"name": "topk", "k": 3}, d_out=4),
    "same width": partial(fitted, "relu", preprocess_out="minmax"),
}
TOPK = ["topk", "topk alpha", "bfloat16", "whiten", "chain", "chain back"]
ACROSS_WIDTHS = ["transcoder", "transcoder jumprelu", "transcoder batchtopk", "transcoder topk"]
HAS = {
    saelens: set(OURS) - {"transcoder topk"},
    dictionary_learning: set(OURS) - {"pursuit", *ACROSS_WIDTHS},
    sparsify: set(TOPK),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_written_and_read_back_it_is_the_same(tmp_path, peer, name):
    model, rows = OURS[name]()
    if name not in HAS[peer]:
        with pytest.raises(ValueError, match=r"has|targets|transcoders"):
            peer.write(model, tmp_path / "m")
        assert not list(tmp_path.iterdir())
        return
    peer.write(model, tmp_path / "m")
    back = ff.load(tmp_path / "m")
    if name == "bfloat16":  # computes in float32 with the same numbers
        model = model.float()
    for found, expected in zip(both(back, rows), both(model, rows), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == sorted(
        [peer.CONFIG, peer.WEIGHTS, selftest.NAME]
    )


def both(model, rows):
    return model.encode(rows), model.reconstruct(rows)


def test_pictures_are_flattened(tmp_path):
    rows = torch.arange(300.0).view(50, 1, 2, 3).sin()
    model = ff.Autoencoder((1, 2, 3), 8, preprocess="standardize")
    model.preprocess.fit(lambda: [rows])
    saelens.write(model, tmp_path / "m")
    torch.testing.assert_close(ff.load(tmp_path / "m").encode(rows.flatten(1)), model.encode(rows), atol=1e-5, rtol=0)
    assert (
        json.loads((tmp_path / "m/cfg.json").read_text())["metadata"]["fewfire"]["rows"] == "flattened from (1, 2, 3)"
    )


def test_a_threshold_is_met_by_winners_and_exceeded_elsewhere(tmp_path):
    """WinnerTakeAll fires at its threshold, peers above theirs."""
    model = ff.Autoencoder(1, 1, "wta", preprocess=None)
    with torch.no_grad():
        model.encoder.W_enc.fill_(1)
        model.decoder.W_dec.fill_(1)
        model.activation.threshold.fill_(0.7)
    rows = torch.tensor([[0.7], [torch.nextafter(torch.tensor(0.7), torch.tensor(0.0))]])
    assert model.encode(rows).tolist() == [[rows[0].item()], [0.0]]
    saelens.write(model, tmp_path / "m")
    assert torch.equal(ff.load(tmp_path / "m").encode(rows), model.encode(rows))


def test_rows_far_from_0_keep_their_digits(tmp_path):
    """Peers that take b_dec off the row first are as exact as we are; others are refused, not written badly."""
    rows = 1000 + torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    for activation, written in (({"name": "topk", "k": 3}, True), ("relu", False)):
        model = ff.Autoencoder(6, 12, activation, preprocess="standardize")
        model.preprocess.fit(lambda: [rows])
        path = tmp_path / model.activation.name
        if written:
            dictionary_learning.write(model, path)
            torch.testing.assert_close(ff.load(path).encode(rows), model.encode(rows), atol=1e-4, rtol=0)
        else:
            with pytest.raises(ValueError, match="too far from 0"):
                dictionary_learning.write(model, path)
    assert [path.name for path in tmp_path.iterdir()] == ["topk"], "no litter"


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (partial(fitted, "sigmoid"), "'sigmoid'"),
        (partial(fitted, "gaussian"), "'gaussian'"),
        (partial(fitted, "plain"), "'plain'"),
        (partial(fitted, "relu", network={"name": "mlp", "hidden": [5]}), "one linear layer each way"),
        (partial(fitted, "relu", network={"name": "linear", "output": "sigmoid"}), "output sigmoid"),
        (partial(fitted, "relu", preprocess="row_mean"), "'row_mean'"),
        (partial(fitted, "relu", preprocess=["center", "clip_scale"]), "'clip_scale'"),
        (lambda: (ff.Autoencoder(6, 12, preprocess="standardize"), None), "not been fitted"),
    ],
)
@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_what_cannot_be_expressed_is_refused(tmp_path, peer, model, words):
    with pytest.raises(ValueError, match=words) as refused:
        peer.write(model()[0], tmp_path / "m")
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_pursuit_with_a_bias_of_its_own_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a bias of its own"):
        saelens.write(fitted({"name": "matching_pursuit", "k": 3}, preprocess=None)[0], tmp_path / "m")
    with pytest.raises(ValueError, match="encoder and decoder differ"):
        saelens.write(fitted({"name": "matching_pursuit", "k": 3})[0], tmp_path / "m")


def test_a_subclass_is_not_taken_for_what_it_extends(tmp_path):
    class Halved(ff.ReLU, name="halved_for_test"):
        def forward(self, pre_acts, state=None):
            return super().forward(pre_acts) / 2

    try:
        with pytest.raises(ValueError, match="exists in fewfire alone"):
            saelens.write(fitted("halved_for_test")[0], tmp_path / "m")
    finally:
        del Activation.registry["halved_for_test"]


# ------------------------------------------------------------------------------------------------ the self-test


@pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
def test_an_export_that_no_longer_computes_the_same_is_refused(tmp_path, peer):
    """A changed weight, under a sound checksum or none."""
    peer.write(OURS["topk"]()[0], tmp_path / "m")
    file = tmp_path / "m" / peer.WEIGHTS
    tensors = torch.load(file) if peer is dictionary_learning else load_file(file)
    tensors["b_dec"] = tensors["b_dec"] + 0.01
    (torch.save if peer is dictionary_learning else save_file)(tensors, file)
    with pytest.raises(ff.ModelFileError, match="does not compute what was written"):
        ff.load(tmp_path / "m")


def test_the_self_test_fires_and_states_its_units(tmp_path):
    for name in sorted(HAS[saelens]):
        saelens.write(OURS[name]()[0], tmp_path / name)
        assert selftest_of(tmp_path / name)["values"].ne(0).any(1).sum() >= 4, name
        origin = open_foreign(tmp_path / name).origin
        assert origin["latent_units"].startswith("those of fewfire's encode")


def selftest_of(folder):
    return load_file(folder / selftest.NAME)


def test_a_self_test_of_another_model_is_refused(tmp_path):
    saelens.write(OURS["topk"]()[0], tmp_path / "m")
    saelens.write(OURS["transcoder"]()[0], tmp_path / "n")
    os.replace(tmp_path / "n" / selftest.NAME, tmp_path / "m" / selftest.NAME)  # noqa: PTH105
    with pytest.raises(ff.ModelFileError, match="does not fit the model"):
        ff.load(tmp_path / "m")


# ------------------------------------------------------------------------------------------------ strict accounts


def refused(folder):
    with pytest.raises(ff.ModelFileError) as error:
        ff.load(folder)
    text = str(error.value)
    assert "\n" not in text
    assert len(text.replace(str(folder), "")) < 400
    return text


@pytest.mark.parametrize("name", RECORDED)
def test_every_key_and_tensor_is_accounted_for(tmp_path, name):
    """Each missing, each of another kind, and one too many."""
    peer, settings, tensors, _ = RECORDED[name]
    place = (tmp_path / str(i) for i in range(1000))
    for tensor in tensors:
        broken = [None, tensors[tensor].float() * torch.nan, tensors[tensor][None], tensors[tensor] != 0]
        for other in broken if tensor != "scaling_factor" else broken[1:]:
            changed = {**tensors, tensor: other}
            folder = put(next(place), peer, settings, {k: v for k, v in changed.items() if v is not None})
            assert re.search(f"{tensor.removeprefix('log_')}|not understood|BoolStorage", refused(folder))
    assert "'surplus', which is not understood" in refused(
        put(next(place), peer, settings, {**tensors, "surplus": torch.ones(1)})
    )
    assert "'surplus', which is not understood" in refused(put(next(place), peer, {**settings, "surplus": 1}, tensors))
    if peer is dictionary_learning:
        inner = {**settings, "trainer": {**settings["trainer"], "surplus": 1}}
        assert "'trainer.surplus', which is not understood" in refused(put(next(place), peer, inner, tensors))


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (of_saelens("skip_transcoder", {"W_skip": torch.zeros(3, 3)}, d_out=3), "no path around the latents"),
        (of_saelens("jumprelu_skip_transcoder"), "no path around the latents"),
        (of_saelens("abstopk", k=2), "absolute value"),
        (of_saelens("temporal"), "neighbouring rows"),
        (of_saelens("novel"), "expected one of the architectures"),
        (of_saelens("standard", normalize_activations="layer_norm"), "'layer_norm'"),
        (of_saelens("standard", normalize_activations="constant_norm_rescale"), "'constant_norm_rescale'"),
        (of_saelens("standard", normalize_activations="covariance_whitening"), "'covariance_whitening'"),
        (of_saelens("standard", normalize_activations="expected_average_only_in"), "activation_scaler.json"),
        (of_saelens("transcoder", d_out=3), "neither takes its b_dec"),
        (of_saelens("topk", k=9), "at most 4"),
        (of_saelens("topk", k=0), "at least 1"),
        (of_saelens("topk", k=True), "expected 'k' to be int"),
        (of_saelens("topk", k=2, rescale_acts_by_decoder_norm=True, tensors={"W_dec": 0 * W_DEC}), "gives NaN"),
        (of_saelens("batchtopk", {"topk_threshold": SCALAR}, k=-1.0), "expected above 0"),
        (of_saelens("matching_pursuit", {"W_enc": None, "b_enc": None}), "always k rounds"),
        (of_saelens("jumprelu", {"log_threshold": THRESHOLD + 200}), "expected threshold to be a number above 0"),
        (of_saelens("gated", {**GATES, "b_enc": None, "r_mag": R_MAG + 800}), "out of range"),
        (of_saelens("standard", d_in=2**40), "'W_dec' of shape"),
        (of_saelens("standard", {"scaling_factor": 2 * torch.ones(4)}), "scales each latent"),
        ((saelens, {"d_in": 3, "d_sae": 4, "activation_fn": "tanh-relu"}, PARAMETERS), "'tanh-relu'"),
        ((saelens, {"d_in": 3, "d_sae": 4, "finetuning_scaling_factor": True}, PARAMETERS), "scales each latent"),
        (of_dictionary_learning("IdentityDict", {}), "expected a dict_class"),
        (
            of_dictionary_learning("AutoEncoderTopK", {**LINEAR, "b_dec": B_DEC, **COUNTED}, k=3),
            "k is 3 in config.json",
        ),
        (
            of_dictionary_learning(
                "MatryoshkaBatchTopKSAE", {**PARAMETERS, **COUNTED, **GROUPS}, k=2, group_sizes=[2, 2]
            ),
            "group_sizes",
        ),
        (of_dictionary_learning("AutoEncoder", {"ae": B_DEC, "step": B_DEC}), "a backup"),
        (of_sparsify(activation="groupmax"), "'groupmax'"),
        (of_sparsify(skip_connection=True), "no path around the latents"),
        (of_sparsify(signed=True), "absolute value"),
        (of_sparsify(k=5), "at most 4"),
    ],
)
def test_what_we_cannot_compute_is_refused_with_the_reason(tmp_path, made, words):
    assert words in refused(put(tmp_path / "m", *made))


def test_a_tied_model_writes_b_dec_only_where_it_takes_it_off(tmp_path):
    made = of_saelens("matching_pursuit", {"W_enc": None, "b_enc": None}, **ROUNDS, apply_b_dec_to_input=False)
    model = ff.load(put(tmp_path / "m", *made))
    latents, recon = map(torch.tensor, PURSUIT)
    torch.testing.assert_close(model.encode(X - B_DEC), latents)
    torch.testing.assert_close(model.reconstruct(X - B_DEC), recon - B_DEC)


@pytest.mark.parametrize(
    "made",
    [
        of_saelens("jumprelu", {"threshold": torch.tensor([-0.5, -1.0, 0.0, -9.0])}),
        of_dictionary_learning(
            "BatchTopKSAE", {**LINEAR, "b_dec": B_DEC, **COUNTED, "threshold": torch.tensor(-1.0)}, k=2
        ),
    ],
    ids=["jumprelu", "batchtopk"],
)
def test_thresholds_below_0_let_all_that_is_positive_pass(tmp_path, made):
    model = ff.load(put(tmp_path / "m", *made))
    torch.testing.assert_close(model.encode(X), torch.tensor(RELU[0]))
    assert float(model.activation.threshold.detach().min()) == 0


def test_rows_scaled_by_the_number_beside_the_checkpoint(tmp_path):
    """Latents in units of scaled rows, reconstructions of rows as they are."""
    made = of_saelens("standard", normalize_activations="expected_average_only_in")
    folder = put(tmp_path / "m", *made)
    (folder / "activation_scaler.json").write_text('{"scaling_factor": 0.5, "has_whitening": false}')
    opened = open_foreign(folder)
    latents, recon = map(torch.tensor, RELU)
    torch.testing.assert_close(opened.model.encode(2 * X), latents)
    torch.testing.assert_close(opened.model.reconstruct(2 * X), 2 * recon)
    assert opened.origin["latent_units"] == "those of SAELens' encode, of rows times 0.5"
    for bad in ('{"scaling_factor": 0}', '{"scaling_factor": null}', '{"scaling_factor": 1, "more": 1}', "[]", "{"):
        (folder / "activation_scaler.json").write_text(bad)
        refused(folder)


# ------------------------------------------------------------------------------------------------ hostile files


class Payload:
    """What a pickle would do, were it allowed to."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def rewritten(file, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"bias": Payload(os.system, "touch ran")}, "it wants 'posix system'"),
        ({"bias": Payload(eval, "open('ran', 'w')")}, "it wants '__builtin__ eval'"),
        ({"bias": Payload(bytearray, 1 << 40)}, "bytearray"),
        ({"bias": torch.zeros(1).expand(1 << 20, 1 << 20)}, "larger than its data"),
        ({"bias": torch.zeros(3).to_sparse()}, "it wants"),
        ({"bias": [1, 2]}, "a dense tensor, got a list"),
        ({1: torch.zeros(3)}, "not a state dict"),
        ([torch.zeros(3)], "not a state dict"),
        (torch.nn.ReLU(), "it wants"),
    ],
)
def test_a_pickle_does_nothing_but_tensors(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    folder = put(tmp_path / "m", *of_dictionary_learning("AutoEncoder", content))
    assert words in refused(folder)
    assert not (tmp_path / "ran").exists()


def test_other_archives_are_refused(tmp_path):
    folder = put(tmp_path / "m", *of_dictionary_learning("AutoEncoder", {"bias": torch.zeros(1 << 20)}))
    file = folder / "ae.pt"
    rewritten(file, zipfile.ZIP_DEFLATED)
    assert "compressed" in refused(folder)
    torch.save({"bias": B_DEC}, file, _use_new_zipfile_serialization=False)
    assert "not a state dict that torch saved" in refused(folder)
    file.write_bytes(pickle.dumps({"bias": 1}))
    assert "not a state dict that torch saved" in refused(folder)
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(5000):
            archive.writestr(str(i), b"")
    assert "5000 records" in refused(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a": 1, "a": 2}', '{"d_in": NaN}', "[" * 100_000, '"\xff'])
@pytest.mark.parametrize("name", ["saelens standard", "AutoEncoder", "sparsify"])
def test_a_damaged_configuration_is_refused(recorded, name, text):
    folder = recorded(name)
    (folder / RECORDED[name][0].CONFIG).write_bytes(text.encode("latin-1"))
    refused(folder)


def test_a_configuration_of_megabytes_is_not_read(recorded):
    folder = recorded("sparsify")
    with (folder / "cfg.json").open("wb") as file:
        file.truncate(10 << 30)  # sparse: takes no room on the disk
    assert "longer than" in refused(folder)


@pytest.mark.parametrize("name", ["saelens jumprelu", "BatchTopKSAE", "sparsify"])
def test_damage_anywhere_is_refused_or_harmless(recorded, name):
    """Bytes changed or cut, anywhere: a clear error, or a model of finite numbers. Never anything else."""
    peer = RECORDED[name][0]
    folder = recorded(name)
    shuffled = random.Random(0)
    for file in (folder / peer.CONFIG, folder / peer.WEIGHTS):
        good = file.read_bytes()
        for _ in range(150):
            bad = bytearray(good)
            if shuffled.random() < 0.2:
                del bad[shuffled.randrange(len(bad)) :]
            else:
                for _ in range(shuffled.choice([1, 1, 4])):
                    bad[shuffled.randrange(len(bad))] = shuffled.choice(
                        [0, 1, 0x22, 0x7F, 0xFF, shuffled.randrange(256)]
                    )
            file.write_bytes(bad)
            try:
                model = ff.load(folder)
            except ff.ModelFileError as error:
                assert "\n" not in str(error)
            else:
                assert model.n_latents == 4
        file.write_bytes(good)
    ff.load(folder)


# ------------------------------------------------------------------------------------------------ load and convert


def test_ours_are_told_from_theirs(tmp_path, recorded):
    model, rows = OURS["topk"]()
    ff.save(model, tmp_path / "ours")
    assert not is_foreign(tmp_path / "ours")
    assert is_foreign(recorded("sparsify"))
    assert torch.equal(ff.load(tmp_path / "ours").encode(rows), model.encode(rows))
    put_beside = tmp_path / "theirs" / files.MODEL
    put_beside.write_bytes((tmp_path / "ours" / files.MODEL).read_bytes())
    assert not is_foreign(tmp_path / "theirs"), "a folder with a model of ours is ours"
    with pytest.raises(FileNotFoundError, match="no model"):
        ff.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder of"):
        open_foreign(tmp_path)


def test_converted_it_keeps_what_it_was_told(tmp_path, recorded):
    """From each to ours, and from ours to each."""
    folder = recorded("saelens topk")
    expected = ff.load(folder).encode(X)
    convert(folder, tmp_path / "ours", "fewfire")
    origin = files.read_config(tmp_path / "ours")["provenance"]["converted_from"]
    assert origin["config"] == RECORDED["saelens topk"][1]
    assert (origin["format"], origin["architecture"]) == ("saelens", "topk")
    for to in TARGETS[1:]:
        convert(tmp_path / "ours", tmp_path / to, to)
        torch.testing.assert_close(ff.load(tmp_path / to).encode(X), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="fewfire's own already"):
        convert(tmp_path / "ours", tmp_path / "again", "fewfire")
    with pytest.raises(FileExistsError, match="not empty"):
        convert(tmp_path / "ours", tmp_path / "saelens", "saelens")
    with pytest.raises(FileExistsError, match="not empty"):
        saelens.write(ff.load(folder), tmp_path / "sparsify")
    with pytest.raises(ValueError, match="expected one of fewfire, saelens"):
        convert(tmp_path / "ours", tmp_path / "more", "pickle")
    assert not (tmp_path / "again").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_run_opens_a_peers_folder(recorded):
    run = open_run(recorded("sparsify"))
    assert run.provenance["converted_from"]["format"] == "sparsify"
    assert run.config is None


def test_the_command_line(tmp_path, recorded, monkeypatch, capsys):
    folder = recorded("BatchTopKSAE")

    def fewfire(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewfire", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, capsys.readouterr()

    code, said = fewfire("convert", folder, tmp_path / "new", "--to", "saelens")
    assert (code, said.err) == (0, f"{tmp_path / 'new'}: 4 latents, batchtopk, for saelens\n")
    code, said = fewfire("info", tmp_path / "new")
    assert json.loads(said.out)["architecture"] == "jumprelu"
    code, said = fewfire("convert", folder, tmp_path / "other", "--to", "sparsify")
    assert (code, said.err) == (2, "fewfire: sparsify has topk alone, and the model's activation is batchtopk\n")
    (folder / "config.json").write_text("{}")
    code, said = fewfire("convert", folder, tmp_path / "other", "--to", "fewfire")
    assert code == 1
    assert re.fullmatch(r"fewfire: .*lacks 'trainer'\n", said.err)
    assert not (tmp_path / "other").exists()
