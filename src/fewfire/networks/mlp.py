"""Several layers each way, the decoder a mirror of the encoder."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewfire.networks.family import Decoder, Network, Pair, Sizes, check_output, check_tied
from fewfire.networks.linear import LinearDecoder, LinearEncoder, TiedDecoder, start_as_dictionary, uniform

__all__ = ["HIDDEN_ACTIVATIONS", "Mlp", "MlpDecoder", "MlpEncoder"]

HIDDEN_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
RECTIFIERS = {"relu", "gelu", "elu"}
"""Those that pass about half of the variance on, which first weights make up for."""

MAX_LAYERS = 64
"""Far beyond any use; a model file must not ask for a million."""


class Mlp(Network):
    """A deep autoencoder: columns -> hidden[0] -> ... -> hidden[-1] -> latents, and back the same way.

    Hinton & Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks". The reconstruction is
    not linear in the latents, so terms that need a linear decoder (``AuxK``) are left out.

    Parameters
    ----------
    hidden
        Widths of the layers between the columns and the latents, from the columns on; the decoder mirrors them.
    hidden_activation
        "relu", "gelu", "elu", "tanh" or "sigmoid", after every layer but the last of the encoder and the last of the
        decoder.
    tied
        The decoder uses the encoder's weights, layer by layer.
    output
        "identity" or "sigmoid".
    unit_norm
        Keep the rows of the decoder's first layer, one a latent, at norm 1, as :class:`Linear` does. None: as the
        activation prefers.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (512, 256),
        hidden_activation: str = "relu",
        tied: bool = False,
        output: str = "identity",
        unit_norm: bool | None = None,
    ) -> None:
        check_output(output)
        if hidden_activation not in HIDDEN_ACTIVATIONS:
            names = ", ".join(HIDDEN_ACTIVATIONS)
            raise ValueError(f"expected hidden_activation to be one of {names}; got {hidden_activation!r}")
        if tied and unit_norm:
            raise ValueError("expected untied weights with unit_norm; tied weights cannot be rescaled alone")
        self.hidden = _widths(hidden)
        self.hidden_activation = hidden_activation
        self.tied = tied
        self.output = output
        self.unit_norm = unit_norm

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        if self.unit_norm is None:
            self.unit_norm = unit_norm and not self.tied
        if self.tied:
            check_tied(sizes)
        between = [(width,) for width in self.hidden]
        inputs = [sizes.input_shape, *between]
        down = [LinearEncoder(i, n) for i, n in zip(inputs, [*self.hidden, sizes.n_pre * sizes.n_latents], strict=True)]
        targets = [*reversed(between), sizes.target_shape]
        up: list[LinearDecoder]
        if self.tied:
            up = [TiedDecoder(layer, t) for layer, t in zip(reversed(down), targets, strict=True)]
        else:
            up = [LinearDecoder(n, t) for n, t in zip([sizes.n_latents, *reversed(self.hidden)], targets, strict=True)]
            up[0].unit_norm = self.unit_norm
        self._initialise(down, up, generator)
        encoder, decoder = MlpEncoder(down, self.hidden_activation), MlpDecoder(up, self.hidden_activation)
        return Pair(encoder, decoder, (sizes.n_latents,))

    def _initialise(
        self, down: Sequence[LinearEncoder], up: Sequence[LinearDecoder], generator: torch.Generator
    ) -> None:
        """Uniform, biases 0. Before a rectifier, which halves the variance, in +-sqrt(6 / fan in) (He et al. 2015).
        Elsewhere, and for weights that serve both ways, in +-sqrt(6 / (fan in + fan out + 1)); four times that before
        logistic units, whose slope is a quarter of that of tanh.

        Latents with unit norm start as random directions of the last hidden layer, as Linear's do of the columns.
        """

        def start(weight: Tensor, fan_in: int, *, before_hidden: bool) -> None:
            rectified = before_hidden and self.hidden_activation in RECTIFIERS and not self.tied
            logistic = before_hidden and self.hidden_activation == "sigmoid"
            square_bound = 6 / fan_in if rectified else 6 / (sum(weight.shape) + 1)
            uniform(weight, 16 * square_bound if logistic else square_bound, generator)

        for encoder in down:
            start(encoder.W_enc, encoder.W_enc[0].numel(), before_hidden=encoder is not down[-1])
        for decoder in () if self.tied else up:
            start(decoder.W_dec, len(decoder.W_dec), before_hidden=decoder is not up[-1])
        if self.unit_norm:
            start_as_dictionary(down[-1], up[0], generator)


def _widths(hidden: Any) -> tuple[int, ...]:
    try:
        widths = tuple(operator.index(width) for width in hidden)
    except TypeError:
        widths = ()
    if not 1 <= len(widths) <= MAX_LAYERS or min(widths) < 1:
        raise ValueError(
            f"expected hidden to be the widths of 1 to {MAX_LAYERS} layers, each at least 1, such as (512, 256); "
            f"got {str(hidden)[:60]}. Without hidden layers the network is 'linear'"
        )
    return widths


class MlpEncoder(nn.Module):
    """Linear layers with a non-linearity between: (B, *input shape) -> (B, P). Row j of the last one is latent j."""

    def __init__(self, layers: Iterable[LinearEncoder], hidden_activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.hidden_activation = hidden_activation

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers[-1](self.below(x, len(self.layers) - 1)))

    def below(self, x: Tensor, depth: int) -> Tensor:
        """What comes to layer ``depth`` when rows (B, *input shape) come to the first."""
        between = HIDDEN_ACTIVATIONS[self.hidden_activation]
        for layer in self.layers[:depth]:
            x = between(layer(x))
        return x

    def centre(self, mean: Tensor) -> None:
        """Read rows from now on less this mean (*input shape)."""
        cast(LinearEncoder, self.layers[0]).centre(mean)


class MlpDecoder(Decoder):
    """Linear layers with a non-linearity between: (B, L) -> (B, *target shape). Row j of the first one is latent j."""

    def __init__(self, layers: Iterable[LinearDecoder], hidden_activation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.hidden_activation = hidden_activation

    def forward(self, latents: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            latents = HIDDEN_ACTIVATIONS[self.hidden_activation](layer(latents))
        return cast(Tensor, last(latents))

    def start_from(self, row: Tensor, constant: Tensor) -> None:
        """Write this row (*target shape) before the hidden layers add to it, and always where a column is constant."""
        cast(LinearDecoder, self.layers[-1]).start_from(row, constant)

    @property
    def _first(self) -> LinearDecoder:
        return cast(LinearDecoder, self.layers[0])

    @property
    def constrained(self) -> bool:
        return self._first.constrained

    def project_gradient(self) -> None:
        self._first.project_gradient()

    def constrain(self) -> None:
        self._first.constrain()
