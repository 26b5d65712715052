"""Encoder and decoder pairs. One class a shape, one file each.

A network builds two modules. The encoder maps (B, *input shape) to pre-activations (B, P); the decoder maps latents
to (B, *target shape). Weight matrices of linear layers are (latents, columns): a latent is a row, contiguous, and
kernels update these very parameters in place.

To add one, subclass :class:`Network` and write ``build``; the decoder it makes is a :class:`Decoder`.
"""

from fewfire.networks.conv import Conv, ConvDecoder, ConvEncoder, Convolution, Deconvolution, Window
from fewfire.networks.family import OUTPUTS, Decoder, Network, Pair, Sizes
from fewfire.networks.linear import Linear, LinearDecoder, LinearEncoder, TiedDecoder
from fewfire.networks.mlp import HIDDEN_ACTIVATIONS, Mlp, MlpDecoder, MlpEncoder

__all__ = [
    "HIDDEN_ACTIVATIONS",
    "OUTPUTS",
    "Conv",
    "ConvDecoder",
    "ConvEncoder",
    "Convolution",
    "Decoder",
    "Deconvolution",
    "Linear",
    "LinearDecoder",
    "LinearEncoder",
    "Mlp",
    "MlpDecoder",
    "MlpEncoder",
    "Network",
    "Pair",
    "Sizes",
    "TiedDecoder",
    "Window",
]
