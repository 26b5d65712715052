"""The convolutional autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fewfire.activations import Activation
from fewfire.contracts import Layout, Source
from fewfire.estimators import building
from fewfire.estimators.constraints import SHARED
from fewfire.estimators.family import AutoencoderEstimator

__all__ = ["ConvolutionalAutoencoder"]

KERNEL, STRIDE = 4, 2
FIRST_CHANNELS = 16
FEW_PLACES, MAX_LAYERS = 7, 3
MAX_DEFAULT_LATENTS = 256


class ConvolutionalAutoencoder(AutoencoderEstimator):
    """Features of images and series, found by the same weights at every place.

    ::

        cae = ConvolutionalAutoencoder(n_components=64, input_shape=(1, 28, 28), random_state=0).fit(X)
        cae = ConvolutionalAutoencoder(n_components=64).fit(images)     # (n, h, w) or (n, channels, h, w)

    Convolutions with a stride lead to one vector of latents, and their mirror back, for rows of any size. Masci et al.
    2011, "Stacked convolutional auto-encoders". Latents that are maps, as of the convolutional winner-take-all
    autoencoder, come with ``fewfire.Autoencoder(network={"name": "conv", "latents": "maps"})``.

    Parameters
    ----------
    n_components
        Number of latents; None: as many as columns, at most 256.
    input_shape
        How a row of columns is read: (channels, h, w), or (channels, t) for a series. None: as the pictures that
        ``fit`` is given, (n, h, w) or (n, channels, h, w); the rows of a table as a series of one channel.
    hidden
        Maps of each convolution, from the rows on. None: 16, and twice as many each time that a stride halves the
        places, down to about seven.
    tied
        Not available: False.
    preprocess
        "standardize" applies to tables alone; images and series, whose values share a unit, are centred and divided
        by one number, and with ``loss="bce"`` mapped to [0, 1] together.

    Notes
    -----
    All other parameters, and the attributes, are those of :class:`SparseAutoencoder`.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {**SHARED, "input_shape": [tuple, list, None]}

    def __init__(
        self, n_components: int | None = None, *, input_shape: Sequence[int] | None = None, **shared: Any
    ) -> None:
        super().__init__(n_components, **shared)
        self.input_shape = input_shape

    def reconstruct(self, X: Any) -> npt.NDArray[Any]:
        """What the model makes of each row, in the units of the data: (n, columns), or the shape of ``X``."""
        recon = super().reconstruct(X)
        return recon.reshape(X.shape) if _is_pictures(X) else recon

    @classmethod
    def _parameters_of(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        network = config["network"]
        if network["name"] != "conv" or (network["latents"], network["kernel"], network["stride"]) != (
            "vector",
            KERNEL,
            STRIDE,
        ):
            return None
        linear = {**config, "network": {"name": "linear", "output": network["output"], "tied": False}}
        shape = network["input_shape"]
        return {**(super()._parameters_of(linear) or {}), "hidden": tuple(network["channels"]), "input_shape": shape}

    def _n_latents(self, row_shape: tuple[int, ...]) -> int:
        return self.n_components or min(math.prod(row_shape), MAX_DEFAULT_LATENTS)

    def _flat(self, X: Any, *, reset: bool) -> Any:
        """Pictures as rows of columns; their shape is kept for ``_layout``."""
        if reset:
            self._given_shape = tuple(X.shape[1:]) if _is_pictures(X) else ()
        return X.reshape(len(X), -1) if _is_pictures(X) else X

    def _layout(self, width: int) -> Layout:
        shape = tuple(self.input_shape or ()) or self._given_shape
        if not shape:
            return super()._layout(width)
        if math.prod(shape) != width:
            raise ValueError(f"expected X with {math.prod(shape)} columns, as input_shape {shape} says; got {width}")
        return Layout("series" if self.input_shape and len(shape) == 2 else "image", shape)

    def _make_network(self, activation: Activation, source: Source) -> dict[str, Any]:
        if self.tied:
            raise ValueError("a convolutional decoder has weights of its own; leave tied out")
        flat = building.make_network(self, activation, None)
        grid = source.layout.shape[1:] if source.layout.kind == "series" else tuple(source.row_shape)[-2:]
        side = max(grid)
        return {
            "name": "conv",
            "channels": list(_channels(side) if self.hidden is None else self.hidden),
            "kernel": min(KERNEL, side),
            "stride": STRIDE if side >= KERNEL else 1,
            "hidden_activation": building.HIDDEN_ACTIVATION,
            "output": flat["output"],
            "unit_norm": flat["unit_norm"],
        }

    def _make_preprocess(self, source: Source) -> Any:
        shares_a_unit = source.layout.kind != "table"
        if not shares_a_unit or self.preprocess != "standardize":
            return super()._make_preprocess(source)
        return {"name": "minmax", "per_column": False} if self.loss == "bce" else "center"


def _channels(side: int) -> list[int]:
    """16, 32, ...: a layer for each halving that leaves about seven places."""
    n_layers = min(max(1, round(math.log2(side / FEW_PLACES))), MAX_LAYERS)
    return [FIRST_CHANNELS << i for i in range(n_layers)]


def _is_pictures(X: Any) -> bool:
    return isinstance(X, np.ndarray | Tensor) and X.ndim > 2
