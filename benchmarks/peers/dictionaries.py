"""Makes and opens dictionaries with their own libraries for benchmarks/peer_files.py, in an environment that has them.

    python dictionaries.py make FOLDER     one folder a model, by the library's own code; what it computes beside it
    python dictionaries.py open FOLDER     opens each folder in FOLDER/cases.json, and writes what it computes

Environment: pip install -c constraints.txt sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0, and then
pip uninstall torchvision, which comes along in a build that does not fit this torch and hinders the import.
Numbers go through expected.npz files: rows, latents, recon.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["SPARSIFY_DISABLE_TRITON"] = "1"
import numpy as np
import torch
from dictionary_learning import dictionary as dl
from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
from dictionary_learning.trainers.top_k import AutoEncoderTopK
from dictionary_learning.utils import load_dictionary
from sae_lens import saes as sl
from sae_lens.training.activation_scaler import ActivationScaler
from sparsify import SparseCoder
from sparsify.config import SparseCoderConfig

D, L, K, D_OUT, GROUPS = 16, 48, 6, 10, [8, 16, 24]


def shaken(model, seed):
    """Every weight away from where it starts, so that none could be left out unnoticed; rows of norm about 1.

    Thresholds are about 0.3. With longer decoder rows matching pursuit would not converge.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 + 0.1 * noise.abs() if "threshold" in name else parameter + 0.2 * noise)
        if isinstance(model, sl.MatchingPursuitSAE):
            model.W_dec /= model.W_dec.norm(dim=1, keepdim=True)
        for name, value in model.named_buffers():
            if "threshold" in name:
                value.fill_(0.4)
    return model


def rows(seed):
    return torch.randn(512, D, generator=torch.Generator().manual_seed(seed)) + 0.5


# ------------------------------------------------------------------------------------------------ making


def saelens_models():
    """name -> (model, how it is saved)"""
    size = {"d_in": D, "d_sae": L}
    yield "standard", sl.StandardSAE(sl.StandardSAEConfig(**size)), "save_model"
    yield (
        "standard, b_dec not taken off",
        sl.StandardSAE(sl.StandardSAEConfig(**size, apply_b_dec_to_input=False)),
        "save_model",
    )
    yield "topk", sl.TopKSAE(sl.TopKSAEConfig(**size, k=K)), "save_model"
    yield (
        "topk, rescaled by decoder norms",
        sl.TopKSAE(sl.TopKSAEConfig(**size, k=K, rescale_acts_by_decoder_norm=True)),
        "save_model",
    )
    yield "topk, training", sl.TopKTrainingSAE(sl.TopKTrainingSAEConfig(**size, k=K)), "save_model"
    yield (
        "topk, training, for inference",
        sl.TopKTrainingSAE(sl.TopKTrainingSAEConfig(**size, k=K)),
        "save_inference_model",
    )
    yield "jumprelu", sl.JumpReLUSAE(sl.JumpReLUSAEConfig(**size)), "save_model"
    yield "jumprelu, training", sl.JumpReLUTrainingSAE(sl.JumpReLUTrainingSAEConfig(**size)), "save_model"
    yield "gated", sl.GatedSAE(sl.GatedSAEConfig(**size)), "save_model"
    yield (
        "batchtopk, for inference",
        sl.BatchTopKTrainingSAE(sl.BatchTopKTrainingSAEConfig(**size, k=2.5)),
        "save_inference_model",
    )
    yield (
        "matryoshka, for inference",
        sl.MatryoshkaBatchTopKTrainingSAE(
            sl.MatryoshkaBatchTopKTrainingSAEConfig(**size, k=K, matryoshka_widths=[8, 24, L])
        ),
        "save_inference_model",
    )
    yield (
        "matching pursuit, 6 rounds",
        sl.MatchingPursuitSAE(
            sl.MatchingPursuitSAEConfig(
                **size, residual_threshold=0.0, stop_on_duplicate_support=False, max_iterations=K
            )
        ),
        "save_model",
    )
    across = {**size, "d_out": D_OUT, "apply_b_dec_to_input": False}
    yield "transcoder", sl.Transcoder(sl.TranscoderConfig(**across)), "save_model"
    yield "jumprelu_transcoder", sl.JumpReLUTranscoder(sl.JumpReLUTranscoderConfig(**across)), "save_model"


def dictionary_learning_models():
    """name -> (model, what trainer.config says beside the sizes)"""
    yield "AutoEncoder", dl.AutoEncoder(D, L), {}
    yield "AutoEncoderNew", dl.AutoEncoderNew(D, L), {}
    yield "GatedAutoEncoder", dl.GatedAutoEncoder(D, L), {}
    yield "JumpReluAutoEncoder", dl.JumpReluAutoEncoder(D, L), {}
    yield "AutoEncoderTopK", AutoEncoderTopK(D, L, K), {"k": K}
    yield "BatchTopKSAE", BatchTopKSAE(D, L, K), {"k": K}
    yield "MatryoshkaBatchTopKSAE", MatryoshkaBatchTopKSAE(D, L, K, GROUPS), {"k": K, "group_sizes": GROUPS}


def make(folder):
    x, cases = rows(1), []

    def record(library, name, model):
        place = folder / f"{len(cases):02d}"
        cases.append({"library": library, "name": name, "folder": place.name})
        latents, recon = computed(model, x)
        np.savez(folder / f"{place.name}.npz", rows=x, latents=latents, recon=recon)
        return place

    for seed, (name, model, how) in enumerate(saelens_models()):
        model = shaken(model, seed)
        place = record("saelens", name, model)
        getattr(model, how)(place)
        if "inference" in how:  # in training it fires by the batch: what is published is what counts
            latents, recon = computed(sl.SAE.load_from_disk(place), x)
            np.savez(folder / f"{place.name}.npz", rows=x, latents=latents, recon=recon)
    make_unfinished(lambda name, model: record("saelens", name, model))
    for seed, (name, model, said) in enumerate(dictionary_learning_models()):
        place = record("dictionary_learning", name, shaken(model, 100 + seed))
        place.mkdir()
        torch.save({key: value.cpu() for key, value in model.state_dict().items()}, place / "ae.pt")
        trainer = {"dict_class": name, "activation_dim": D, "dict_size": L, "lr": 1e-3, "steps": 1, **said}
        (place / "config.json").write_text(json.dumps({"trainer": trainer}))
    for seed, transcode in enumerate((False, True)):
        model = shaken(SparseCoder(D, SparseCoderConfig(num_latents=L, k=K, transcode=transcode)), 200 + seed)
        record("sparsify", "transcoder" if transcode else "topk", model).mkdir()
        model.save_to_disk(folder / cases[-1]["folder"])
    (folder / "cases.json").write_text(json.dumps(cases))


def make_unfinished(record):
    """Checkpoints of SAELens' training, beside what its own last steps before publishing make of the same weights."""
    size = {"d_in": D, "d_sae": L}
    batchtopk = shaken(sl.BatchTopKTrainingSAE(sl.BatchTopKTrainingSAEConfig(**size, k=2.5)), 50)
    scaled = shaken(
        sl.StandardTrainingSAE(
            sl.StandardTrainingSAEConfig(**size, normalize_activations="expected_average_only_in"),
        ),
        51,
    )
    scaled_topk = shaken(
        sl.BatchTopKTrainingSAE(
            sl.BatchTopKTrainingSAEConfig(**size, k=K, normalize_activations="expected_average_only_in")
        ),
        52,
    )
    for name, model, factor in (
        ("batchtopk, checkpoint", batchtopk, None),
        ("standard, checkpoint with scaled rows", scaled, 0.4),
        ("batchtopk, checkpoint with scaled rows", scaled_topk, 0.4),
    ):
        with tempfile.TemporaryDirectory() as published:
            finished = copy.deepcopy(model)
            if factor:
                finished.fold_activation_norm_scaling_factor(factor)
            finished.save_inference_model(published)
            place = record(name, sl.SAE.load_from_disk(published))
        if (
            factor and model is scaled_topk
        ):  # publishing divides its latents by the factor; a checkpoint's are undivided
            told = dict(np.load(place.with_suffix(".npz")))
            np.savez(place.with_suffix(".npz"), **{**told, "latents": told["latents"] * np.float32(factor)})
        model.save_model(place)
        ActivationScaler(factor).save(str(place / "activation_scaler.json"))
    flat = shaken(sl.TopKSAE(sl.TopKSAEConfig(**size, k=K)), 53)
    place = record("topk, flat configuration of version 3", flat)
    flat.save_model(place)
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "hook_point": "blocks.0", "dtype": "float32"}
    (place / "cfg.json").write_text(json.dumps({**size, **old, "normalize_activations": False}))


# ------------------------------------------------------------------------------------------------ computing


def computed(model, x):
    """(latents, recon), both dense, by the model's own code."""
    with torch.no_grad():
        if isinstance(model, SparseCoder):
            acts, indices, _ = model.encode(x)
            latents = torch.zeros(len(x), model.num_latents).scatter_(1, indices, acts)
            return latents.numpy(), model(x).sae_out.numpy()
        latents = model.encode(x)
        recon = model.decode(latents)
        return latents.to_dense().numpy(), recon.numpy()


def open_all(folder):
    for case in json.loads((folder / "cases.json").read_text()):
        place = folder / case["folder"]
        if case["library"] == "saelens":
            model = sl.SAE.load_from_disk(place)
        elif case["library"] == "sparsify":
            model = SparseCoder.load_from_disk(place)
        else:
            model, _ = load_dictionary(str(place), device="cpu")
        x = torch.from_numpy(np.load(folder / f"{place.name}.npz")["rows"])
        latents, recon = computed(model, x)
        np.savez(folder / f"{place.name}.theirs.npz", latents=latents, recon=recon)


if __name__ == "__main__":
    {"make": make, "open": open_all}[sys.argv[1]](Path(sys.argv[2]))
