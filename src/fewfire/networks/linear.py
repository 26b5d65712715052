"""One linear layer each way: the dictionary that most sparse autoencoders are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewfire.networks.family import Decoder, Network, Pair, Sizes, check_output, check_tied
from fewfire.rows import aligned
from fewfire.rows.gather import CACHE_LINE

__all__ = ["Linear", "LinearDecoder", "LinearEncoder", "TiedDecoder", "start_as_dictionary", "uniform"]


class Linear(Network):
    """One layer each way: ``pre_acts = W_enc x + b_enc`` and ``recon = output(latents W_dec + b_dec)``.

    Parameters
    ----------
    tied
        The decoder uses the encoder's weights. None: as the activation prefers.
    output
        "identity" or "sigmoid".
    unit_norm
        Keep every decoder row at norm 1: the part of its gradient along the row is removed, and the row rescaled
        after each step. None: as the activation prefers, but for weights that were tied by hand: no.
    """

    gives = frozenset({"linear_encoder", "linear_decoder"})

    def __init__(self, tied: bool | None = None, output: str = "identity", unit_norm: bool | None = None) -> None:
        check_output(output)
        self.tied = tied
        self.output = output
        self.unit_norm = unit_norm

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        if self.unit_norm is None:  # tied by hand they are the textbook's, which may grow
            self.unit_norm = unit_norm and not self.tied and self.output == "identity"
        if self.tied is None:
            self.tied = sizes.tied
        if self.tied:
            check_tied(sizes)
        encoder = LinearEncoder(sizes.input_shape, sizes.n_pre * sizes.n_latents)
        decoder = (
            TiedDecoder(encoder, sizes.target_shape, unit_norm=self.unit_norm)
            if self.tied
            else LinearDecoder(sizes.n_latents, sizes.target_shape, unit_norm=self.unit_norm)
        )
        _initialise(encoder, decoder, generator)
        return Pair(encoder, decoder, (sizes.n_latents,))


def _initialise(encoder: LinearEncoder, decoder: LinearDecoder, generator: torch.Generator) -> None:
    """Unit-norm dictionaries start as random directions, the encoder as their copy (Gao et al. 2024, A.1).

    Otherwise uniform in +-sqrt(6 / (fan in + fan out + 1)), biases 0 (Ng 2011, CS294A).
    """
    if decoder.unit_norm and start_as_dictionary(encoder, decoder, generator):
        return
    if not decoder.unit_norm and not isinstance(decoder, TiedDecoder):
        _glorot(decoder.W_dec, generator)
    _glorot(encoder.W_enc, generator)


def start_as_dictionary(encoder: LinearEncoder, decoder: LinearDecoder, generator: torch.Generator) -> bool:
    """Random directions in the decoder, their copy in the encoder; False: the encoder's shape is another."""
    copied = encoder.W_enc.shape == decoder.W_dec.shape
    if decoder.W_dec.is_meta:  # a sketch has no numbers; to ask for them would import a compiler, which takes a second
        return copied
    with torch.no_grad():
        decoder.W_dec.normal_(generator=generator)
        decoder.constrain()
        if copied:
            encoder.W_enc.copy_(decoder.W_dec)
    return copied


def _glorot(weight: Tensor, generator: torch.Generator) -> None:
    uniform(weight, 6 / (sum(weight.shape) + 1), generator)


def uniform(weight: Tensor, square_bound: float, generator: torch.Generator) -> None:
    """Fill with numbers from +-sqrt(square_bound), whose variance is a third of it."""
    bound = math.sqrt(square_bound)
    with torch.no_grad():
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

    @torch.no_grad()
    def centre(self, mean: Tensor) -> None:
        """Read rows from now on less this mean (*input shape): the bias takes it off."""
        self.b_enc.sub_(self.W_enc @ mean.flatten())


def _for_product(x: Tensor) -> Tensor:
    """At inference a row's result must not depend on its place in the batch; in training that would cost a copy."""
    return x if torch.is_grad_enabled() else aligned(x)


def _filled_up(weight: Tensor) -> Tensor:
    """With columns of 0 up to whole cache lines, so that every row of a product with it begins at one, too."""
    missing = -weight.shape[-1] % (CACHE_LINE // weight.element_size())
    return F.pad(weight, (0, missing)) if missing else weight


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
        if torch.is_grad_enabled():
            return torch.addmm(self.b_dec, latents, self.W_dec).view(-1, *self.target_shape)
        y = torch.addmm(_filled_up(self.b_dec), aligned(latents), _filled_up(self.W_dec))
        return y[:, : len(self.b_dec)].reshape(-1, *self.target_shape)

    @torch.no_grad()
    def start_from(self, row: Tensor, constant: Tensor) -> None:
        """Write this row (*target shape) where all latents are 0; and always, where a column is constant (bool)."""
        self.b_dec.copy_(row.flatten())
        self.W_dec[:, constant.flatten()] = 0  # for good, as long as it stays so: without error there is no gradient
        self.constrain()

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

    def __init__(self, encoder: LinearEncoder, target_shape: tuple[int, ...], *, unit_norm: bool = False) -> None:
        # A tuple hides the encoder from Module's bookkeeping: the shared weight is saved, and updated, once.
        self.__dict__["_tied_to"] = (encoder,)
        super().__init__(len(encoder.W_enc), target_shape, unit_norm=unit_norm)

    def _make_weight(self, n_latents: int, width: int) -> None:
        pass

    @property
    def W_dec(self) -> nn.Parameter:  # type: ignore[override]
        encoder: LinearEncoder = self.__dict__["_tied_to"][0]
        return encoder.W_enc
