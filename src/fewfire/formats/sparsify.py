"""EleutherAI's sparsify (eai-sparsify): ``cfg.json`` and ``sae.safetensors``.

Of a row x it computes ``z = topk(relu(encoder.weight (x - b_dec) + encoder.bias))`` and ``x_hat = z W_dec + b_dec``; a
transcoder leaves the first ``b_dec`` out. Shapes there: encoder.weight (L, D) and W_dec (L, D), as here.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fewfire.activations import TopK
from fewfire.autoencoder import Autoencoder
from fewfire.formats import rules
from fewfire.formats.exporting import about, export, write_json, write_safetensors
from fewfire.formats.folding import Dictionary, fold
from fewfire.formats.foreign import Foreign
from fewfire.formats.strict import Settings, Tensors

__all__ = ["CONFIG", "WEIGHTS", "open_folder", "read", "write"]

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"


def read(path: str | os.PathLike[str]) -> Autoencoder:
    """The model in a folder; errors as :func:`open_folder`."""
    return open_folder(path).model


def open_folder(path: str | os.PathLike[str]) -> Foreign:
    """The model in a folder of one hookpoint, and what the folder says of it.

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
    weights = Tensors.read_safetensors(folder / WEIGHTS)
    if (kind := settings.take("activation", str, default="topk")) != "topk":
        raise settings.refuse(f"its activation is {kind!r:.60}; fewfire has topk, no other of sparsify's")
    if settings.take("skip_connection", bool, default=False):
        raise settings.refuse("it adds W_skip x to what the latents say; here there is no path around the latents")
    if settings.take("signed", bool, default=False):
        raise settings.refuse("it keeps the largest by absolute value; fewfire has no such activation")
    d_in, k = settings.size("d_in"), settings.size("k")
    expansion = settings.take("expansion_factor", int, default=32)
    n_latents = settings.take("num_latents", int, default=0) or d_in * expansion
    transcodes = settings.take("transcode", bool, default=False)
    settings.pass_over("normalize_decoder", "multi_topk")
    settings.take("fewfire", dict, default={})
    settings.finish()
    try:
        rule = rules.topk(k, n_latents)
    except ValueError as error:
        raise settings.refuse(str(error)) from error
    W_enc, b_enc = weights.take("encoder.weight", n_latents, d_in), weights.take("encoder.bias", n_latents)
    W_dec, b_dec = weights.take("W_dec", n_latents, d_in), weights.take("b_dec", d_in)
    weights.finish()
    if transcodes:
        dictionary = Dictionary(W_enc, b_enc, W_dec, b_dec, rule)
    else:
        dictionary = Dictionary(W_enc, b_enc, W_dec, torch.zeros_like(b_dec), rule, centre=b_dec)
    return Foreign.finish(
        folder,
        dictionary,
        peer="sparsify",
        architecture="transcoder" if transcodes else "topk",
        config=settings.whole,
        units="those of sparsify's encode, of rows as they are",
    )


def write(model: Autoencoder, path: str | os.PathLike[str]) -> None:
    """Write a folder that ``SparseCoder.load_from_disk`` opens; it takes rows of data, flat.

    Raises
    ------
    FileExistsError
        There is something at ``path``.
    ValueError
        sparsify has no such model: the message says why.
    """
    d = fold(model)
    if not isinstance(d.activation, TopK):
        raise ValueError(f"sparsify has topk alone, and the model's activation is {d.activation.name}")
    if d.transcodes:
        raise ValueError(
            f"sparsify has targets as wide as its rows; the model's are {d.W_dec.shape[1]} and {d.W_enc.shape[1]} wide"
        )
    tensors = {"encoder.weight": d.W_enc, "encoder.bias": d.b_centred, "W_dec": d.W_dec, "b_dec": d.b_dec}
    settings = {
        "activation": "topk",
        "expansion_factor": max(1, len(d.b_enc) // len(d.b_dec)),
        "normalize_decoder": False,  # of training: rows of this decoder have the norms that the preprocess gave them
        "num_latents": len(d.b_enc),
        "k": rules.k_of(d.activation, len(d.b_enc)),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": len(d.b_dec),
        "fewfire": about(model),
    }

    def fill(folder: Path) -> None:
        write_safetensors(folder / WEIGHTS, tensors, model)
        write_json(folder / CONFIG, settings)

    export(model, path, fill, read)
