"""The convolutional autoencoder as a scikit-learn transformer."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fewfire.activations import Activation
from fewfire.contracts import Layout, Source
from fewfire.estimators import building
from fewfire.estimators.constraints import SHARED
from fewfire.estimators.family import AutoencoderEstimator
from fewfire.networks import Conv
from fewfire.rows import as_storage

__all__ = ["ConvolutionalAutoencoder"]

KERNEL, STRIDE = 4, 2
FIRST_CHANNELS = 16
FEW_PLACES, MAX_LAYERS = 7, 3
MAX_DEFAULT_LATENTS = 256
COLOURS = (1, 3, 4)
"""channels that many libraries put last"""


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
        ``fit`` is given, (n, h, w) or (n, channels, h, w), or as a file or Source says; the rows of a table as a
        series of one channel.
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
        X = _stacked(X)
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
        shape = tuple(network["input_shape"])
        return {**(super()._parameters_of(linear) or {}), "hidden": tuple(network["channels"]), "input_shape": shape}

    def _n_latents(self, row_shape: tuple[int, ...]) -> int:
        return self.n_components or min(math.prod(row_shape), MAX_DEFAULT_LATENTS)

    def _flat(self, X: Any, *, reset: bool) -> Any:
        """Pictures as rows of columns; their shape is kept for ``_layout``."""
        X = _stacked(X)
        shape = tuple(X.shape[1:]) if _is_pictures(X) else ()
        if reset:
            self._given_shape = shape
        if not shape:
            return X
        if not reset or self.input_shape is not None:
            read_as = cast(Conv, self.module_.network).input_shape if not reset else self._stated_shape()
            _check_same(shape, read_as or ())
        else:
            _check_pictures(tuple(X.shape))
        return X.reshape(len(X), math.prod(shape))

    def _layout(self, width: int) -> Layout:
        shape = self._given_shape if self.input_shape is None else self._stated_shape()
        if not shape:
            return super()._layout(width)
        if math.prod(shape) != width:
            raise ValueError(f"expected X with {math.prod(shape)} columns, as input_shape {shape} says; got {width}")
        return Layout("series" if self.input_shape is not None and len(shape) == 2 else "image", shape)

    def _stated_shape(self) -> tuple[int, ...]:
        try:
            shape = tuple(operator.index(side) for side in self.input_shape or ())
        except TypeError:
            shape = ()
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(
                "expected input_shape to be (channels, h, w), or (channels, t) for a series, whole numbers from 1; "
                f"got {self.input_shape!r:.60}"
            )
        return shape

    def _layout_of(self, source: Source) -> Layout:
        """Of a file or a Source: as ``input_shape`` says, else as it says itself."""
        if self.input_shape is None:
            return source.layout
        if len(source.row_shape) > 1:
            _check_same(tuple(source.row_shape), self._stated_shape())
        return self._layout(math.prod(source.row_shape))

    def _make_network(self, activation: Activation, source: Source) -> dict[str, Any]:
        if self.tied:
            raise ValueError("a convolutional decoder has weights of its own; leave tied out")
        if self.hidden is not None and not self.hidden:
            raise ValueError(
                f"expected hidden to be the maps of at least one convolution, such as (16, 32); got {self.hidden!r}. "
                "Without any there is SparseAutoencoder"
            )
        flat = building.make_network(self, activation, None)
        layout = self._layout_of(source)
        series = layout.kind == "series"
        side = max(layout.shape[1:] if series else (layout.shape or tuple(source.row_shape))[-2:])
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
        shares_a_unit = self._layout_of(source).kind != "table"
        if not shares_a_unit or self.preprocess != "standardize":
            return super()._make_preprocess(source)
        return {"name": "minmax", "per_column": False} if self.loss == "bce" else "center"


def _channels(side: int) -> list[int]:
    """16, 32, ...: a layer for each halving that leaves about seven places."""
    n_layers = min(max(1, round(math.log2(side / FEW_PLACES))), MAX_LAYERS)
    return [FIRST_CHANNELS << i for i in range(n_layers)]


def _stacked(X: Any) -> Any:
    """A list of pictures as an array of them."""
    is_list = isinstance(X, list | tuple) and len(X) > 0 and np.ndim(X[0]) > 1
    return as_storage(X, "X") if is_list else X


def _check_pictures(shape: tuple[int, ...]) -> None:
    """Refuse what is neither (n, h, w) nor (n, channels, h, w), or looks like (n, h, w, channels)."""
    if len(shape) > 4 or 0 in shape[1:]:
        raise ValueError(f"expected pictures X of shape (n, h, w) or (n, channels, h, w); got {shape}")
    if len(shape) == 4 and shape[3] in COLOURS and shape[1] > max(COLOURS) and shape[2] > max(COLOURS):
        raise ValueError(
            f"expected pictures X of shape (n, channels, h, w); {shape} looks like (n, h, w, channels). Move the "
            f"channels with np.moveaxis(X, 3, 1); or, if rows are as X says, give input_shape={shape[1:]}"
        )


def _check_same(came: tuple[int, ...], wanted: Sequence[int]) -> None:
    """Refuse pictures of another shape, though they may have as many values."""
    h_w_or_more = tuple(wanted)[1:] if wanted[0] == 1 else tuple(wanted)
    if came not in (tuple(wanted), h_w_or_more):
        raise ValueError(f"expected pictures of shape {h_w_or_more}, as the model reads them; got {came}")


def _is_pictures(X: Any) -> bool:
    return isinstance(X, np.ndarray | Tensor) and X.ndim > 2
