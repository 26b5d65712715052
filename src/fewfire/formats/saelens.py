"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``.

Read: inference models and training checkpoints, also of versions before 6, whose configuration is flat. Written: what
``SAE.load_from_disk`` of version 6 opens. Shapes there: W_enc (D, L), W_dec (L, D).

Of a row x it computes ``z = rule((x - b_dec) W_enc + b_enc)`` and ``x_hat = z W_dec + b_dec``, where
``apply_b_dec_to_input`` is false without the first ``b_dec``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewfire.activations import Activation, Gated, MatchingPursuit, ReLU, TopK
from fewfire.autoencoder import Autoencoder
from fewfire.disk import ModelFileError
from fewfire.formats import rules
from fewfire.formats.exporting import about, export, precision, write_json, write_safetensors
from fewfire.formats.folding import Dictionary, fold
from fewfire.formats.foreign import Foreign
from fewfire.formats.strict import Settings, Tensors

__all__ = ["CONFIG", "WEIGHTS", "open_folder", "read", "write"]

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SCALER = "activation_scaler.json"
WRITES = "6.54.12"
"""the version whose format is written"""

SKIP = "it adds W_skip x to what the latents say; in fewfire there is no path around the latents"
REFUSED = {
    "skip_transcoder": SKIP,
    "jumprelu_skip_transcoder": SKIP,
    "abstopk": "fewfire has no activation that keeps the largest by absolute value",
    "temporal": "its latents depend on neighbouring rows; here a row's latents depend on that row alone",
}
TRAINING = (
    "decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps aux_loss_coefficient use_sparse_activations "
    "topk_threshold_lr matryoshka_widths use_matryoshka_aux_loss jumprelu_init_threshold jumprelu_bandwidth "
    "jumprelu_sparsity_loss_mode l0_coefficient l0_warm_up_steps pre_act_loss_coefficient jumprelu_tanh_scale "
    "jumprelu_ste_to_input target_l0"
)
"""settings of training alone"""
FLAT = (
    "model_name model_class_name model_from_pretrained_kwargs model_kwargs hook_name hook_layer hook_head_index "
    "hook_name_out hook_layer_out hook_head_index_out hook_point hook_point_layer hook_point_head_index hf_hook_name "
    "hf_hook_name_out context_size prepend_bos exclude_special_tokens seqpos_slice dataset_path "
    "dataset_trust_remote_code neuronpedia_id sae_lens_version sae_lens_training_version noise_scale seed "
    "mse_loss_normalization use_ghost_grads normalize_sae_decoder decoder_orthogonal_init decoder_heuristic_init "
    "init_encoder_as_decoder_transpose scale_sparsity_penalty_by_decoder_norm b_dec_init_method expansion_factor "
    "from_pretrained_path lr lr_end lr_scheduler_name lr_warm_up_steps lr_decay_steps n_restart_cycles adam_beta1 "
    "adam_beta2 train_batch_size train_batch_size_tokens store_batch_size store_batch_size_prompts training_tokens "
    "total_training_tokens finetuning_tokens finetuning_method n_batches_in_buffer tokens_per_buffer streaming "
    "is_dataset_tokenized use_cached_activations cached_activations_path act_store_device autocast autocast_lm "
    "compile_llm llm_compilation_mode compile_sae sae_compilation_mode feature_sampling_window feature_sampling_method "
    "feature_reinit_scale resample_batches dead_feature_window dead_feature_threshold dead_feature_estimation_method "
    "log_to_wandb log_activations_store_to_wandb log_optimizer_state_to_wandb wandb_project wandb_id wandb_entity "
    "wandb_log_frequency run_name eval_every_n_wandb_logs eval_batch_size_prompts n_eval_batches resume n_checkpoints "
    "checkpoint_path verbose"
)
"""what older versions wrote beside the settings of the model: where the rows come from, and the whole training run"""


# ------------------------------------------------------------------------------------------------ reading


def read(path: str | os.PathLike[str]) -> Autoencoder:
    """The model in a folder; errors as :func:`open_folder`."""
    return open_folder(path).model


def open_folder(path: str | os.PathLike[str]) -> Foreign:
    """The model in a folder, and what the folder says of it.

    Its latents are those of SAELens' own ``encode``. With ``expected_average_only_in`` a training checkpoint's rows are
    scaled by what ``activation_scaler.json`` says; the latents stay in units of scaled rows.

    Raises
    ------
    FileNotFoundError
        A file of the two is missing.
    ModelFileError
        A file is damaged, a key or tensor is not understood, or fewfire cannot compute such a model: the message says
        why.
    """
    folder = Path(path)
    settings = _modern(Settings.read(folder / CONFIG))
    weights = Tensors.read_safetensors(folder / WEIGHTS)
    architecture = settings.take("architecture", str)
    if architecture in REFUSED:
        raise settings.refuse(f"of the architecture {architecture!r}: {REFUSED[architecture]}")
    if architecture not in _RULES:
        raise settings.refuse(f"expected one of the architectures {', '.join(_RULES)}; got {architecture!r:.60}")
    try:
        dictionary = _dictionary(architecture, settings, weights)
    except ModelFileError:
        raise
    except ValueError as error:  # a k beyond the width
        raise settings.refuse(str(error)) from error
    settings.pass_over("dtype", "device", "reshape_activations", *TRAINING.split())
    settings.take("metadata", dict, default={})
    settings.finish()
    weights.finish()
    units = "those of SAELens' encode"
    if dictionary.scale != 1.0:
        units += f", of rows times {dictionary.scale:g}"
    return Foreign.finish(
        folder, dictionary, peer="saelens", architecture=architecture, config=settings.whole, units=units
    )


def _modern(settings: Settings) -> Settings:
    """The settings of a version before 6, as version 6 would have written them."""
    whole = settings.whole
    metadata = whole.get("metadata")
    version = whole.get("sae_lens_version") or (metadata.get("sae_lens_version") if isinstance(metadata, dict) else "")
    number = re.match(r"\d+", version) if isinstance(version, str) else None
    if number and len(number[0]) < 6 and int(number[0]) >= 6:
        return settings
    renamed = {"activation_fn_str": "activation_fn"}
    if renamed.keys() | set(renamed.values()) <= whole.keys():
        raise settings.refuse("it names its activation twice")
    flat = Settings(settings.file, {renamed.get(key, key): value for key, value in whole.items()})
    flat.pass_over(*FLAT.split())
    rectifier = flat.take("activation_fn", str, default="relu")
    arguments = flat.take("activation_fn_kwargs", dict, type(None), default=None) or {}
    if rectifier not in ("relu", "topk") or arguments.keys() - {"k", "signed"} or arguments.get("signed"):
        raise flat.refuse(f"its activation is {rectifier!r:.60} with {sorted(arguments)!s:.60}; expected relu or topk")
    if flat.take("finetuning_scaling_factor", bool, type(None), default=None):
        raise flat.refuse("it scales each latent before decoding (finetuning_scaling_factor), which nothing here does")
    scaled = flat.take("normalize_activations", str, bool, type(None), default="none")
    kept = {key: flat.take(key, type(whole[key])) for key in _KEPT.split() if key in flat}
    if rectifier == "topk":
        kept |= {"architecture": "topk", "k": arguments.get("k", kept.get("k"))}
    flat.finish()
    kept["normalize_activations"] = {True: "expected_average_only_in", False: "none", None: "none"}.get(scaled, scaled)
    modern = Settings(settings.file, {"architecture": "standard", **kept})
    modern.whole = whole
    return modern


_KEPT = (
    "architecture d_in d_sae d_out dtype device apply_b_dec_to_input reshape_activations k "
    f"rescale_acts_by_decoder_norm metadata {TRAINING}"
)


Rule = tuple[Tensor, Activation]
"""the encoder's bias (L,), and what makes latents of its output"""


def _dictionary(architecture: str, settings: Settings, weights: Tensors) -> Dictionary:
    transcodes = architecture.endswith("transcoder")
    tied = architecture == "matching_pursuit"
    d_in, n_latents = settings.size("d_in"), settings.size("d_sae")
    d_out = settings.size("d_out") if transcodes else d_in
    centred = settings.take("apply_b_dec_to_input", bool, default=True)
    scale = _scale(settings)
    if transcodes and (centred or scale != 1.0):
        raise settings.refuse("a transcoder neither takes its b_dec off the row nor scales rows")
    W_dec, b_dec = weights.take("W_dec", n_latents, d_out), weights.take("b_dec", d_out)
    W_enc = W_dec if tied else weights.take("W_enc", d_in, n_latents).T.contiguous()
    b_enc, rule = _RULES[architecture](settings, weights, n_latents)
    if "scaling_factor" in weights and bool((weights.take("scaling_factor", n_latents) != 1).any()):
        raise settings.refuse("it scales each latent before decoding (scaling_factor), which nothing here does")
    if settings.take("rescale_acts_by_decoder_norm", bool, default=False):
        W_enc, b_enc, W_dec = _rescaled(settings, W_enc, b_enc, W_dec)
    none = torch.zeros_like(b_dec)
    if centred:
        return Dictionary(W_enc, b_enc, W_dec, none, rule, centre=b_dec, scale=scale)
    # a tied model writes b_dec only where it takes it off first
    return Dictionary(W_enc, b_enc, W_dec, none if tied else b_dec, rule, scale=scale)


def _standard(settings: Settings, weights: Tensors, n: int) -> Rule:
    return weights.take("b_enc", n), ReLU()


def _topk(settings: Settings, weights: Tensors, n: int) -> Rule:
    return weights.take("b_enc", n), rules.topk(settings.size("k"), n)


def _batchtopk(settings: Settings, weights: Tensors, n: int) -> Rule:
    """A training checkpoint: the threshold that it learned from its batches is the one of inference."""
    k, threshold = settings.take("k", float), weights.number("topk_threshold")
    return weights.take("b_enc", n), rules.batchtopk(k, threshold, n)


def _jumprelu(settings: Settings, weights: Tensors, n: int) -> Rule:
    """Training checkpoints of versions before 6.48 hold the threshold's logarithm."""
    threshold = weights.take("log_threshold", n).exp() if "log_threshold" in weights else weights.take("threshold", n)
    return weights.take("b_enc", n), rules.jumprelu(threshold)


def _gated(settings: Settings, weights: Tensors, n: int) -> Rule:
    b_gate = weights.take("b_gate", n)
    return b_gate, rules.gated(weights.take("r_mag", n), b_gate, weights.take("b_mag", n))


def _pursuit(settings: Settings, weights: Tensors, n: int) -> Rule:
    rounds = settings.take("max_iterations", int, type(None), default=None)
    stops = settings.take("residual_threshold", float, default=1e-2) > 0
    if stops or settings.take("stop_on_duplicate_support", bool, default=True):
        raise settings.refuse(
            "it stops when the residual is small or no new latent is found, where fewfire's matching pursuit makes "
            "always k rounds; with residual_threshold 0 and stop_on_duplicate_support false it can be read"
        )
    k = int(settings.whole["d_in"]) if rounds is None else rounds
    return torch.zeros(n), rules.pursuit(k, n)


_RULES: dict[str, Callable[[Settings, Tensors, int], Rule]] = {
    "standard": _standard,
    "topk": _topk,
    "batchtopk": _batchtopk,
    "matryoshka_batchtopk": _batchtopk,
    "jumprelu": _jumprelu,
    "gated": _gated,
    "matching_pursuit": _pursuit,
    "transcoder": _standard,
    "jumprelu_transcoder": _jumprelu,
}


def _rescaled(settings: Settings, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``rescale_acts_by_decoder_norm``: latents are chosen, and given out, as if decoder rows were of norm 1."""
    norms = W_dec.double().norm(dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise settings.refuse("it divides by the norm of a decoder row that is 0, which gives NaN in SAELens as well")
    return (W_enc * norms).to(W_enc), (b_enc * norms[:, 0]).to(b_enc), (W_dec / norms).to(W_dec)


def _scale(settings: Settings) -> float:
    """What rows are multiplied by before the model sees them."""
    kind = settings.take("normalize_activations", str, type(None), default="none") or "none"
    if kind == "none":
        return 1.0
    if kind != "expected_average_only_in":
        raise settings.refuse(
            f"its rows are normalised by {kind!r:.60}, by each row's own values or by a matrix outside the file; "
            "fewfire has no such preprocess"
        )
    file = settings.file.with_name(SCALER)
    if not file.is_file():
        raise settings.refuse(
            f"its rows must be scaled, by a number that is not here: {SCALER} would hold it. Set "
            'normalize_activations to "none" if your rows are scaled already'
        )
    scaler = Settings.read(file)
    scaler.pass_over("has_whitening")
    scale = scaler.take("scaling_factor", float)
    scaler.finish()
    if not 1e-30 < scale < 1e30:
        raise scaler.refuse(f"expected a scaling_factor above 0 that has an inverse, got {scale:g}")
    return float(scale)


# ------------------------------------------------------------------------------------------------ writing


def write(model: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write a folder that ``SAE.load_from_disk`` opens; it takes rows of data, flat.

    Raises
    ------
    FileExistsError
        There is something at ``path``.
    ValueError
        SAELens has no such model: the message says why.
    """
    dictionary = fold(model)
    tensors, settings = _exported(dictionary)
    described = {
        "d_in": dictionary.W_enc.shape[1],
        "d_sae": dictionary.W_enc.shape[0],
        "dtype": str(precision(model)).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": not dictionary.transcodes,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": WRITES, "sae_lens_training_version": None, "fewfire": about(model)},
        **settings,
    }

    def fill(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS, tensors, model)
        write_json(folder / CONFIG, described)

    export(model, path, fill, read)


def _exported(d: Dictionary) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and what the configuration says of this architecture alone."""
    rule, n_latents = d.activation, len(d.b_enc)
    b_enc = d.b_enc if d.transcodes else d.b_centred
    tensors = {"W_enc": d.W_enc.T, "b_enc": b_enc, "W_dec": d.W_dec, "b_dec": d.b_dec}
    suffix = "_transcoder" if d.transcodes else ""
    threshold = rules.thresholds(rule, n_latents)
    if threshold is not None:
        return {**tensors, "threshold": threshold}, {"architecture": f"jumprelu{suffix}", **_width(d)}
    if isinstance(rule, ReLU):
        return tensors, {"architecture": "transcoder" if d.transcodes else "standard", **_width(d)}
    if d.transcodes:
        raise ValueError(f"SAELens has transcoders with relu and jumprelu, none with {rule.name}")
    if isinstance(rule, TopK):
        k = rules.k_of(rule, n_latents)
        return tensors, {"architecture": "topk", "k": k, "rescale_acts_by_decoder_norm": False}
    if isinstance(rule, Gated):
        gate, magnitude = rules.gate_biases(rule, b_enc)
        del tensors["b_enc"]
        return {**tensors, "b_gate": gate, "b_mag": magnitude, "r_mag": rule.r_mag.detach().cpu()}, {
            "architecture": "gated"
        }
    assert isinstance(rule, MatchingPursuit)
    return _pursuit_tensors(d), {
        "architecture": "matching_pursuit",
        "max_iterations": rule.k,
        "residual_threshold": 0.0,
        "stop_on_duplicate_support": False,
    }


def _pursuit_tensors(d: Dictionary) -> dict[str, Tensor]:
    """SAELens' matching pursuit has decoder rows and ``b_dec``, and nothing else that could be learned."""
    untied = (d.W_enc - d.W_dec).abs().max() > 1e-7 * d.W_dec.abs().max()
    biased = d.b_centred.abs().max() > 1e-6 * d.W_dec.abs().max()
    if untied or biased:
        what = "its encoder has a bias of its own" if not untied else "encoder and decoder differ"
        raise ValueError(
            f"SAELens' matching pursuit reads with the decoder's rows and no bias; of this model {what}"
            + ("" if not untied else " (a preprocess that scales rows makes them differ)")
        )
    return {"W_dec": d.W_dec, "b_dec": d.b_dec}


def _width(d: Dictionary) -> dict[str, Any]:
    return {"d_out": d.W_dec.shape[1]} if d.transcodes else {}
