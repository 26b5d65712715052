"""A few rows and what the model makes of them, stored with an export: whoever reads it can see that it is the same."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from fewfire import rng
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import SparseCodes
from fewfire.disk import ModelFileError, load_tensors, save_tensors

__all__ = ["NAME", "TOLERANCE", "SelfTestError", "check", "store"]

NAME = "fewfire_selftest.safetensors"
TOLERANCE = 1e-5
"""largest difference, as a share of the largest value or of 1"""
ROWS = 8
CANDIDATES = 64
TREMOR = 1e-5
"""A row for which this share of its values decides what fires says nothing of the format."""


class SelfTestError(ModelFileError):
    """The model of a folder does not compute what the folder says that it does."""


def store(model: Autoencoder, folder: Path) -> None:
    """Write rows (n, D), the latents that fire and the reconstructions (n, D_out), all flat and in float32."""
    flat = _rows(model)
    rows = flat.view(-1, *model.input_shape)
    codes, recon = model.encode_sparse(rows), model.reconstruct(rows)
    save_tensors(
        folder / NAME,
        {"rows": flat, "indices": codes.indices, "values": codes.values.float(), "recon": recon.flatten(1).float()},
        {"what": "rows of data, the latents that fire on them, and their reconstructions", "tolerance": TOLERANCE},
    )


def check(folder: Path, model: Autoencoder) -> None:
    """Compare the model with the self-test in its folder, if there is one.

    Raises
    ------
    SelfTestError
        Latents or reconstructions differ.
    ModelFileError
        The self-test is damaged, or of another model.
    """
    file = folder / NAME
    if not file.is_file():
        return
    tensors, _ = load_tensors(file)
    try:
        rows, recon = tensors["rows"], tensors["recon"]
        codes = SparseCodes(tensors["indices"], tensors["values"])
        latents = torch.zeros(len(rows), model.n_latents).scatter_add_(1, codes.indices, codes.values)
        pairs = {"latents": (model.encode(rows), latents), "reconstructions": (model.reconstruct(rows), recon)}
        apart = {what: _apart(found.float(), expected) for what, (found, expected) in pairs.items()}
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelFileError(f"{file} does not fit the model beside it; restore the folder from a copy") from error
    for what, difference in apart.items():
        if not difference <= TOLERANCE:
            raise SelfTestError(
                f"{folder} does not compute what was written: {what} differ from {NAME} by {difference:.1e} of the "
                "largest; restore it from a copy"
            )


def _apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest expected value or of 1."""
    if found.shape != expected.shape:
        raise ValueError
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def _rows(model: Autoencoder) -> Tensor:
    """(ROWS, D) float32, half noise and half what single latents look for; no latent is undecided in them."""
    generator = rng.generator(0, "selftest")
    width = math.prod(model.input_shape)
    noise = torch.randn(CANDIDATES, width, generator=generator)
    chosen = torch.randint(model.n_latents, (CANDIDATES, 3), generator=generator)
    weights: Tensor = model.encoder.W_enc  # type: ignore[assignment]
    sought = weights.detach()[chosen.to(weights.device)].sum(1).float().cpu()
    sought *= math.sqrt(width) / sought.norm(dim=1, keepdim=True).clamp(min=1e-12)
    half = ROWS // 2
    return torch.cat([_decided(model, candidates)[:half] for candidates in (noise, sought + 0.1 * noise)])


def _decided(model: Autoencoder, candidates: Tensor) -> Tensor:
    """Rows of model space as rows of data, flat, those first of which the same latents fire after a tremor."""
    shaped = candidates.view(-1, *model.input_shape)
    rows = shaped if model.preprocess is None else model.preprocess.inverse(shaped)
    firing = [model.encode(rows.double() * factor) != 0 for factor in (1, 1 - TREMOR, 1 + TREMOR)]
    changes = sum((other != firing[0]).flatten(1).sum(1) for other in firing[1:])
    assert isinstance(changes, Tensor)
    return rows.flatten(1)[changes.cpu().argsort(stable=True)]
