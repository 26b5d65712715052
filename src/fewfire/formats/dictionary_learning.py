"""dictionary_learning: ``config.json`` and ``ae.pt``, a pickled state dict.

Of a row x its classes compute ``z = rule(W (x - bias) + b)`` and ``x_hat = W' z + bias``; AutoEncoderNew and
JumpReluAutoEncoder leave the first ``bias`` out. Shapes there: those of ``nn.Linear``, (L, D) and (D, L), or, where
the weights are called W_enc and W_dec, (D, L) and (L, D).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire.activations import BatchTopK, Gated, ReLU, TopK
from fewfire.autoencoder import Autoencoder
from fewfire.disk import ModelFileError
from fewfire.formats import rules
from fewfire.formats.exporting import about, export, write_json, write_pt
from fewfire.formats.folding import Dictionary, fold
from fewfire.formats.foreign import Foreign
from fewfire.formats.strict import Settings, Tensors

__all__ = ["CONFIG", "WEIGHTS", "open_folder", "read", "write"]

CONFIG, WEIGHTS = "config.json", "ae.pt"

NEVER_SET = -1.0
"""what TopK and BatchTopK hold for a threshold that was not measured"""
TRAINING = (
    "trainer_class lr steps seed device layer lm_name wandb_name submodule_name l1_penalty warmup_steps "
    "sparsity_warmup_steps decay_start resample_steps anneal_start anneal_end p_start p_end n_sparsity_updates "
    "sparsity_function sparsity_penalty sparsity_queue_length auxk_alpha threshold_beta threshold_start_step "
    "top_k_aux k_anneal_steps group_fractions group_weights bandwidth target_l0"
)
"""settings of training, and where the rows come from"""


# ------------------------------------------------------------------------------------------------ reading


def read(path: str | os.PathLike[str]) -> Autoencoder:
    """The model in a folder; errors as :func:`open_folder`."""
    return open_folder(path).model


def open_folder(path: str | os.PathLike[str]) -> Foreign:
    """The model in a folder such as ``trainer_0``, and what the folder says of it.

    Its latents are those of the class's own ``encode`` with the weights as they were saved: ``load_dictionary`` scales
    those of an AutoEncoder to decoder rows of norm 1 on the way, this does not.

    Raises
    ------
    FileNotFoundError
        A file of the two is missing.
    ModelFileError
        A file is damaged, a key or tensor is not understood, or fewfire cannot compute such a model: the message says
        why.
    """
    folder = Path(path)
    settings = Settings.read(folder / CONFIG)
    trainer = settings.table("trainer")
    settings.take("buffer", dict, default={})
    settings.take("fewfire", dict, default={})
    settings.finish()
    kind = trainer.take("dict_class", str)
    if kind not in _READERS:
        raise trainer.refuse(f"expected a dict_class of {', '.join(_READERS)}; got {kind!r:.60}")
    weights = Tensors.read_pt(folder / WEIGHTS)
    if "ae" in weights:
        raise trainer.refuse(f"{WEIGHTS} is a backup that training made; its weights are not scaled yet")
    d_in, n_latents = trainer.size("activation_dim"), trainer.size("dict_size")
    try:
        dictionary = _READERS[kind](trainer, weights, d_in, n_latents)
    except ModelFileError:
        raise
    except ValueError as error:  # a k beyond the width
        raise trainer.refuse(str(error)) from error
    trainer.pass_over(*TRAINING.split())
    trainer.finish()
    weights.finish()
    return Foreign.finish(
        folder,
        dictionary,
        peer="dictionary_learning",
        architecture=kind,
        config=settings.whole,
        units=f"those of {kind}.encode, of rows as they are",
    )


def _centred(W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, bias: Tensor, rule: Any) -> Dictionary:
    return Dictionary(W_enc, b_enc, W_dec, torch.zeros_like(bias), rule, centre=bias)


def _linear_layers(weights: Tensors, d: int, n: int) -> tuple[Tensor, Tensor]:
    """W_enc and W_dec, both (L, D)."""
    return weights.take("encoder.weight", n, d), weights.take("decoder.weight", d, n).T.contiguous()


def _standard(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    W_enc, W_dec = _linear_layers(weights, d, n)
    return _centred(W_enc, weights.take("encoder.bias", n), W_dec, weights.take("bias", d), ReLU())


def _april(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    W_enc, W_dec = _linear_layers(weights, d, n)
    return Dictionary(W_enc, weights.take("encoder.bias", n), W_dec, weights.take("decoder.bias", d), ReLU())


def _gated(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    W_enc, W_dec = _linear_layers(weights, d, n)
    gate = weights.take("gate_bias", n)
    rule = rules.gated(weights.take("r_mag", n), gate, weights.take("mag_bias", n))
    return _centred(W_enc, gate, W_dec, weights.take("decoder_bias", d), rule)


def _topk(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    """Its threshold is of no influence: ``encode`` takes the k largest of each row unless it is told otherwise."""
    W_enc, W_dec = _linear_layers(weights, d, n)
    weights.number("threshold")
    rule = rules.topk(_k(trainer, weights), n)
    return _centred(W_enc, weights.take("encoder.bias", n), W_dec, weights.take("b_dec", d), rule)


def _batchtopk(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    W_enc, W_dec = _linear_layers(weights, d, n)
    rule = rules.batchtopk(_k(trainer, weights), weights.number("threshold"), n)
    return _centred(W_enc, weights.take("encoder.bias", n), W_dec, weights.take("b_dec", d), rule)


def _matryoshka(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    """``group_sizes`` are how many latents each group adds; all of them are used at inference."""
    groups = weights.integers("group_sizes", *weights.shape("group_sizes")).tolist()
    said = trainer.take("group_sizes", list, default=groups)
    if not isinstance(groups, list) or groups != said or sum(groups) != n or min(groups) < 1:
        raise trainer.refuse(f"expected group_sizes that make up {n} latents, the same in {CONFIG} and {WEIGHTS}")
    rule = rules.batchtopk(_k(trainer, weights), weights.number("threshold"), n)
    W_enc, W_dec = weights.take("W_enc", d, n).T.contiguous(), weights.take("W_dec", n, d)
    return _centred(W_enc, weights.take("b_enc", n), W_dec, weights.take("b_dec", d), rule)


def _jumprelu(trainer: Settings, weights: Tensors, d: int, n: int) -> Dictionary:
    W_enc, W_dec = weights.take("W_enc", d, n).T.contiguous(), weights.take("W_dec", n, d)
    rule = rules.jumprelu(weights.take("threshold", n))
    return Dictionary(W_enc, weights.take("b_enc", n), W_dec, weights.take("b_dec", d), rule)


def _k(trainer: Settings, weights: Tensors) -> int:
    """Recorded twice. Where the two differ, dictionary_learning does not load the file either."""
    said, held = trainer.size("k"), int(weights.integers("k"))
    if said != held:
        raise trainer.refuse(f"k is {said} in {CONFIG} and {held} in {WEIGHTS}; set trainer.k to the one that is right")
    return held


_READERS: dict[str, Callable[[Settings, Tensors, int, int], Dictionary]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _april,
    "GatedAutoEncoder": _gated,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batchtopk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jumprelu,
}


# ------------------------------------------------------------------------------------------------ writing


def write(model: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write a folder that ``load_dictionary`` opens, in float32; it takes rows of data, flat.

    Raises
    ------
    FileExistsError
        There is something at ``path``.
    ValueError
        dictionary_learning has no such model: the message says why.
    """
    d = fold(model)
    if d.transcodes:
        raise ValueError(
            f"dictionary_learning's targets are its rows; the model's are {d.W_dec.shape[1]} wide, its rows "
            f"{d.W_enc.shape[1]}"
        )
    kind, tensors, settings = _exported(d)
    trainer = {"dict_class": kind, "activation_dim": len(d.b_dec), "dict_size": len(d.b_enc), **settings}
    state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}

    def fill(folder: Path) -> None:
        write_pt(folder / WEIGHTS, state)
        write_json(folder / CONFIG, {"trainer": trainer, "fewfire": about(model)})

    export(model, path, fill, read)


def _exported(d: Dictionary) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
    """The class, its tensors, and what the configuration says of it alone."""
    rule, n_latents = d.activation, len(d.b_enc)
    layers = {"encoder.weight": d.W_enc, "decoder.weight": d.W_dec.T}
    if isinstance(rule, ReLU):  # not AutoEncoder, whose loader scales its latents
        return "AutoEncoderNew", {**layers, "encoder.bias": d.b_enc, "decoder.bias": d.b_dec}, {}
    if isinstance(rule, Gated):
        gate, magnitude = rules.gate_biases(rule, d.b_centred)
        biases = {"decoder_bias": d.b_dec, "gate_bias": gate, "mag_bias": magnitude, "r_mag": rule.r_mag.detach().cpu()}
        return "GatedAutoEncoder", {**layers, **biases}, {}
    centred = {**layers, "encoder.bias": d.b_centred, "b_dec": d.b_dec}
    if isinstance(rule, TopK):
        k = rules.k_of(rule, n_latents)
        return "AutoEncoderTopK", {**centred, **_counted(k, torch.tensor(NEVER_SET))}, {"k": k}
    if isinstance(rule, BatchTopK) and rule.k and rule.k == int(rule.k):
        k = int(rule.k)
        return "BatchTopKSAE", {**centred, **_counted(k, rule.threshold.detach().cpu())}, {"k": k}
    threshold = rules.thresholds(rule, n_latents)
    if threshold is None:
        raise ValueError(f"dictionary_learning has no class for the activation {rule.name}")
    plain = {"W_enc": d.W_enc.T, "b_enc": d.b_enc, "W_dec": d.W_dec, "b_dec": d.b_dec, "threshold": threshold}
    return "JumpReluAutoEncoder", plain, {}


def _counted(k: int, threshold: Tensor) -> dict[str, Tensor]:
    return {"k": torch.tensor(k, dtype=torch.int32), "threshold": threshold}
