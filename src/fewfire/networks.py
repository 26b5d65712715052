"""Encoder and decoder pairs. One class a shape.

A network builds two modules. The encoder maps (B, *input shape) to pre-activations (B, P); the decoder maps latents
to (B, *target shape). Weight matrices of linear layers are (latents, columns): a latent is a row, contiguous, and
kernels update these very parameters in place.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewfire.contracts import Named
from fewfire.rows import aligned

__all__ = ["Decoder", "Linear", "LinearDecoder", "LinearEncoder", "Network", "Pair", "Sizes"]


class Sizes(NamedTuple):
    """What a network has to connect."""

    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    n_latents: int
    n_pre: int
    """pre-activations per latent"""


class Pair(NamedTuple):
    """What a network builds."""

    encoder: nn.Module
    decoder: Decoder
    latent_shape: tuple[int, ...]
    """(L,), or (maps, h, w)"""


class Network(Named):
    """A recipe for an encoder and a decoder. Its settings are plain; ``build`` makes the modules."""

    gives: ClassVar[frozenset[str]] = frozenset()
    output: str
    """"identity", or "sigmoid" for reconstructions in (0, 1)"""

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        """``unit_norm``: what to do when the network's own setting leaves it open."""
        raise NotImplementedError


class Linear(Network):
    """One layer each way: ``pre_acts = W_enc x + b_enc`` and ``recon = output(latents W_dec + b_dec)``.

    Parameters
    ----------
    tied
        The decoder uses the encoder's weights.
    output
        "identity" or "sigmoid".
    unit_norm
        Keep every decoder row at norm 1: the part of its gradient along the row is removed, and the row rescaled
        after each step. None: as the activation prefers.
    """

    gives = frozenset({"linear_decoder"})

    def __init__(self, tied: bool = False, output: str = "identity", unit_norm: bool | None = None) -> None:
        if output not in OUTPUTS:
            raise ValueError(f"expected output to be one of {', '.join(OUTPUTS)}; got {output!r}")
        if tied and unit_norm:
            raise ValueError("expected untied weights with unit_norm; tied weights cannot be rescaled alone")
        self.tied = tied
        self.output = output
        self.unit_norm = unit_norm

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        if self.unit_norm is None:
            self.unit_norm = unit_norm and not self.tied and self.output == "identity"
        same_width = math.prod(sizes.input_shape) == math.prod(sizes.target_shape)
        if self.tied and not (sizes.n_pre == 1 and same_width):
            raise ValueError("tied weights need one pre-activation per latent and a target as wide as the input")
        encoder = LinearEncoder(sizes.input_shape, sizes.n_pre * sizes.n_latents)
        decoder = (
            TiedDecoder(encoder, sizes.target_shape)
            if self.tied
            else LinearDecoder(sizes.n_latents, sizes.target_shape, unit_norm=self.unit_norm)
        )
        _initialise(encoder, decoder, generator)
        return Pair(encoder, decoder, (sizes.n_latents,))


OUTPUTS = {"identity": lambda y: y, "sigmoid": torch.sigmoid}


def _initialise(encoder: LinearEncoder, decoder: LinearDecoder, generator: torch.Generator) -> None:
    """Unit-norm dictionaries start as random directions, the encoder as their copy (Gao et al. 2024, A.1).

    Otherwise uniform in +-sqrt(6 / (fan in + fan out + 1)), biases 0 (Ng 2011, CS294A).
    """
    with torch.no_grad():
        width = math.prod(decoder.target_shape)
        if decoder.unit_norm:
            decoder.W_dec.normal_(generator=generator)
            decoder.constrain()
            if encoder.W_enc.shape == decoder.W_dec.shape:
                encoder.W_enc.copy_(decoder.W_dec)
                return
        elif not isinstance(decoder, TiedDecoder):
            _glorot(decoder.W_dec, len(decoder.W_dec), width, generator)
        _glorot(encoder.W_enc, math.prod(encoder.input_shape), len(encoder.W_enc), generator)


def _glorot(weight: Tensor, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
    bound = math.sqrt(6 / (fan_in + fan_out + 1))
    weight.uniform_(-bound, bound, generator=generator)


class LinearEncoder(nn.Module):
    """``pre_acts = W_enc x + b_enc``: (B, *input shape) -> (B, P)."""

    def __init__(self, input_shape: tuple[int, ...], n_pre_acts: int) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.W_enc = nn.Parameter(torch.empty(n_pre_acts, math.prod(input_shape), dtype=torch.float32))
        self.b_enc = nn.Parameter(torch.zeros(n_pre_acts, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(_for_product(x.flatten(1)), self.W_enc, self.b_enc)


def _for_product(x: Tensor) -> Tensor:
    """At inference a row's result must not depend on its place in the batch; in training that would cost a copy."""
    return x if torch.is_grad_enabled() else aligned(x)


class Decoder(nn.Module):
    """What every decoder answers; a network's decoder module subclasses this."""

    def project_gradient(self) -> None:
        """Between backward and step: drop gradient that ``constrain`` would undo."""

    def constrain(self) -> None:
        """After a step: put parameters back where they must stay."""

    @property
    def constrained(self) -> bool:
        """Whether ``constrain`` does anything."""
        return False


class LinearDecoder(Decoder):
    """``y = latents W_dec + b_dec``: (B, L) -> (B, *target shape). Row j of W_dec is what latent j writes."""

    W_dec: nn.Parameter

    def __init__(self, n_latents: int, target_shape: tuple[int, ...], *, unit_norm: bool = False) -> None:
        super().__init__()
        self.target_shape = target_shape
        self.unit_norm = unit_norm
        self._make_weight(n_latents, math.prod(target_shape))
        self.b_dec = nn.Parameter(torch.zeros(math.prod(target_shape), dtype=torch.float32))

    def _make_weight(self, n_latents: int, width: int) -> None:
        self.W_dec = nn.Parameter(torch.empty(n_latents, width, dtype=torch.float32))

    def forward(self, latents: Tensor) -> Tensor:
        return torch.addmm(self.b_dec, _for_product(latents), self.W_dec).view(-1, *self.target_shape)

    @property
    def constrained(self) -> bool:
        return self.unit_norm

    def project_gradient(self) -> None:
        """Remove from each row's gradient the part along the row, which ``constrain`` would undo anyway."""
        if self.unit_norm and self.W_dec.grad is not None:
            grad, weight = self.W_dec.grad, self.W_dec.detach()
            grad -= (grad * weight).sum(1, keepdim=True) * weight

    @torch.no_grad()
    def constrain(self) -> None:
        """Back to unit norm, after a step."""
        if self.unit_norm:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(torch.finfo(self.W_dec.dtype).tiny))


class TiedDecoder(LinearDecoder):
    """A linear decoder that reads with the encoder's weights."""

    def __init__(self, encoder: LinearEncoder, target_shape: tuple[int, ...]) -> None:
        # A tuple hides the encoder from Module's bookkeeping: the shared weight is saved, and updated, once.
        self.__dict__["_tied_to"] = (encoder,)
        super().__init__(len(encoder.W_enc), target_shape)

    def _make_weight(self, n_latents: int, width: int) -> None:
        pass

    @property
    def W_dec(self) -> nn.Parameter:  # type: ignore[override]
        encoder: LinearEncoder = self.__dict__["_tied_to"][0]
        return encoder.W_enc
