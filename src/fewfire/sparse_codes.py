"""Codes without dense latents: by the compiled kernels where a model is of the kind that they know."""

from __future__ import annotations

import threading
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.contracts import SparseCodes
from fewfire.kernels import NativeKernels, native_missing
from fewfire.networks import Linear, LinearDecoder, LinearEncoder, TiedDecoder

__all__ = ["decode_sparse", "densify", "encode_sparse", "finds_codes"]

FEWEST_ROWS_FOR_BYTES = 256
"""with fewer, rounding the weights to bytes takes longer than it saves"""

_of_thread = threading.local()


def finds_codes(model: Any) -> bool:
    """Whether :func:`encode_sparse` takes the model. Classes are compared exactly: a subclass may do otherwise."""
    return (
        "find" in vars(type(model.activation))
        and type(model.network) is Linear
        and type(model.encoder) is LinearEncoder
        and model.encoder.W_enc.dtype == torch.float32
        and model.encoder.W_enc.device.type == "cpu"
        and not any(m._forward_hooks or m._forward_pre_hooks for m in (model, model.encoder, model.activation))
        and native_missing() is None
    )


@torch.no_grad()
def encode_sparse(model: Any, x_in: Tensor) -> SparseCodes:
    """Rows (B, *input shape) in model space -> SparseCodes (B, K). A row alone gives the bits it has in any batch."""
    kernels: NativeKernels = getattr(_of_thread, "kernels", None) or NativeKernels()
    _of_thread.kernels = kernels  # its memory is asked for once
    kernels.round_to_bytes = len(x_in) >= FEWEST_ROWS_FOR_BYTES
    encoder = model.encoder
    kernels.pack(encoder.W_enc.contiguous(), encoder.b_enc.contiguous())
    model.activation.find(kernels, x_in.flatten(1).contiguous(), model.n_latents)
    return SparseCodes(*kernels.padded())


def densify(codes: SparseCodes, n_latents: int) -> Tensor:
    """SparseCodes (B, K) -> (B, L)."""
    dense = codes.values.new_zeros(len(codes.values), n_latents)
    return dense.scatter_add_(1, codes.indices, codes.values)  # added: what fills up a row is 0 at index 0


def decode_sparse(model: Any, codes: SparseCodes) -> Tensor | None:
    """SparseCodes (B, K) -> reconstructions (B, *target shape), before the output. None: the decoder is not linear."""
    decoder = model.decoder
    if type(decoder) not in (LinearDecoder, TiedDecoder) or decoder._forward_hooks or decoder._forward_pre_hooks:
        return None
    written = F.embedding_bag(codes.indices, decoder.W_dec, mode="sum", per_sample_weights=codes.values)
    return written.add_(decoder.b_dec).view(-1, *decoder.target_shape)
