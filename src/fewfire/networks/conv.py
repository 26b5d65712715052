"""Convolutions: the same weights at every place of an image or a series, and their mirror back."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewfire.networks.family import Network, Pair, Sizes, check_output
from fewfire.networks.linear import LinearDecoder, LinearEncoder, start_as_dictionary, uniform
from fewfire.networks.mlp import HIDDEN_ACTIVATIONS, MAX_LAYERS, RECTIFIERS, MlpDecoder, MlpEncoder
from fewfire.rows.gather import CACHE_LINE

__all__ = ["Conv", "ConvDecoder", "ConvEncoder", "Convolution", "Deconvolution", "Window"]

LATENTS = ("vector", "maps")
MAX_CHANNELS = 1 << 16
"""Far beyond any use, as MAX_LAYERS is; a model file must not ask for a billion."""

Shape = tuple[int, ...]


class Conv(Network):
    """A convolutional autoencoder: convolutions whose strides stand in for pooling, and transposed ones back.

    Masci et al. 2011, "Stacked convolutional auto-encoders for hierarchical feature extraction". A stride s leaves
    ceil(n / s) of n places, and the mirror gives exactly n back, whatever n is. Beyond their border rows are taken to
    be 0: after preprocessing, the mean.

    Parameters
    ----------
    channels
        Maps of the hidden layers, from the rows on; the decoder mirrors them. With maps as latents there may be none.
    kernel
        Side of the windows: one number, or one for each convolution. Where it is a multiple of the stride, the windows
        of the decoder overlap evenly; elsewhere they draw checkerboards (Odena et al. 2016, "Deconvolution and
        checkerboard artifacts").
    stride
        Places from one window to the next: one number, or one for each convolution; at most ``kernel``.
    latents
        "vector": a full layer leads from the last maps to L latents, and another one back. "maps": one more convolution
        makes L maps, (L, h, w) or (L, t); ``l0`` and the k of TopK then count places.
    decoder_kernel
        With maps: decode by one transposed convolution of this side in place of the mirror. A latent is then a filter,
        added wherever its map fires. ``channels=(64, 64), kernel=5, stride=1, decoder_kernel=11`` with activation "wta"
        is the CONV-WTA of Makhzani & Frey 2015.
    input_shape
        How a row is read: (channels, h, w), or (channels, t) for a series. None: as the layout says; without one, rows
        of three and two dimensions as they are, and flat ones as one channel with a place for each column.
    hidden_activation
        "relu", "gelu", "elu", "tanh" or "sigmoid", after every layer but the last of the encoder and the last of the
        decoder.
    output
        "identity" or "sigmoid".
    unit_norm
        Keep at norm 1 what each latent writes into the decoder's first layer, a row or a filter, as :class:`Linear`
        does. None: as the activation prefers.
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64),
        kernel: int | Sequence[int] = 4,
        stride: int | Sequence[int] = 2,
        latents: str = "vector",
        decoder_kernel: int | None = None,
        input_shape: Sequence[int] | None = None,
        hidden_activation: str = "relu",
        output: str = "identity",
        unit_norm: bool | None = None,
    ) -> None:
        check_output(output)
        _check_one_of("hidden_activation", hidden_activation, HIDDEN_ACTIVATIONS)
        _check_one_of("latents", latents, LATENTS)
        self.channels = _whole("channels", channels, range(MAX_LAYERS), at_most=MAX_CHANNELS)
        if latents == "vector" and not self.channels:
            raise ValueError("expected channels; without any, latents 'vector' is network 'linear', or give 'maps'")
        if latents == "vector" and decoder_kernel is not None:
            raise ValueError("expected latents 'maps' with a decoder_kernel: a vector has no places to put a filter")
        self.latents = latents
        self.kernel = kernel
        self.stride = stride
        self.decoder_kernel = (
            None if decoder_kernel is None else _whole("decoder_kernel", [decoder_kernel], range(1, 2))[0]
        )
        self.input_shape = None if input_shape is None else _whole("input_shape", input_shape, range(2, 4))
        self.hidden_activation = hidden_activation
        self.output = output
        self.unit_norm = unit_norm
        self._sides_and_steps()

    def _sides_and_steps(self) -> list[tuple[int, int]]:
        """(kernel, stride) of each convolution."""
        n = len(self.channels) + (self.latents == "maps")
        kernels, strides = _one_or_each("kernel", self.kernel, n), _one_or_each("stride", self.stride, n)
        for kernel, stride in zip(kernels, strides, strict=True):
            if stride > kernel:
                raise ValueError(f"expected a stride of at most the kernel, {kernel}; got {stride}, which leaves gaps")
        return list(zip(kernels, strides, strict=True))

    def build(self, sizes: Sizes, *, unit_norm: bool, generator: torch.Generator) -> Pair:
        self.input_shape = self._read_as(sizes)
        n_channels, *grid = self.input_shape
        windows = self._windows(tuple(grid))
        ends = n_channels, _target_channels(sizes, self.input_shape)
        down, up, latent_grid = self._layers(sizes, windows, ends)
        if self.unit_norm is None:
            self.unit_norm = unit_norm and (len(up) > 1 or self.output == "identity")
        up[0].unit_norm = self.unit_norm
        self._initialise(down, up, generator)
        encoder = ConvEncoder(down, self.hidden_activation, self.input_shape)
        decoder = ConvDecoder(up, self.hidden_activation, sizes.target_shape)
        return Pair(encoder, decoder, (sizes.n_latents, *latent_grid))

    def _read_as(self, sizes: Sizes) -> Shape:
        """(channels, h, w) or (channels, t): what a row is to the convolutions."""
        row, layout = sizes.input_shape, sizes.layout
        shape = self.input_shape
        if shape is None and layout.kind != "table":
            shape = layout.shape if layout.kind == "series" or len(layout.shape) == 3 else (1, *layout.shape)
        if shape is None:
            shape = (1, *row) if len(row) == 1 else row
        if len(shape) not in (2, 3) or math.prod(shape) != math.prod(row):
            raise ValueError(
                f"expected input_shape (channels, h, w) or (channels, t) of {math.prod(row)} values, as the rows have; "
                f"got {shape} for rows of shape {row}"
            )
        return tuple(shape)

    def _windows(self, grid: Shape) -> list[Window]:
        """Where each convolution of the encoder looks."""
        windows: list[Window] = []
        for i, (kernel, stride) in enumerate(self._sides_and_steps()):
            if stride > max(grid):
                raise ValueError(
                    f"expected larger rows for these strides ({self.stride}): convolution {i} would step by {stride} "
                    f"over {_by(grid)} places; give fewer channels, or a stride of 1"
                )
            windows.append(_window(grid, kernel, stride))
            grid = windows[-1].places
        self._check_kernels(windows)
        return windows

    def _check_kernels(self, windows: Sequence[Window]) -> None:
        """Refuse windows that can never lie within the rows, nor all of a row within them."""
        largest, stride = 2 * max(windows[0].grid), math.prod(window.stride[0] for window in windows)
        for window in windows:
            if window.kernel[0] > largest:
                raise ValueError(f"expected a kernel of at most twice the rows, {largest}; got {window.kernel[0]}")
        if self.decoder_kernel is not None and not stride <= self.decoder_kernel <= largest:
            raise ValueError(
                f"expected decoder_kernel from {stride}, the product of the strides, to {largest}, twice the rows; "
                f"got {self.decoder_kernel}"
            )

    def _layers(
        self, sizes: Sizes, windows: Sequence[Window], ends: tuple[int, int]
    ) -> tuple[list[LinearEncoder], list[LinearDecoder], Shape]:
        """Encoder and decoder, each from its input on, and the grid of the latents."""
        n_in, n_out = ends  # channels of a row and of a target
        n_latents, n_pre_acts = sizes.n_latents, sizes.n_pre * sizes.n_latents
        ins, outs = [n_in, *self.channels], [*self.channels, n_pre_acts]
        down: list[LinearEncoder] = [Convolution(c, n, w) for c, n, w in zip(ins, outs, windows, strict=False)]
        ins, outs = [n_out, *self.channels], [*self.channels, n_latents]
        mirror = [Deconvolution(n, c, w) for c, n, w in zip(ins, outs, windows, strict=False)][::-1]
        grid = windows[-1].places
        if self.latents == "vector":
            last = (self.channels[-1], *grid)
            return [*down, LinearEncoder(last, n_pre_acts)], [LinearDecoder(n_latents, last), *mirror], ()
        if self.decoder_kernel is not None:
            stride = math.prod(window.stride[0] for window in windows)
            mirror = [Deconvolution(n_latents, n_out, _window(windows[0].grid, self.decoder_kernel, stride))]
        return down, [*mirror], grid

    def _initialise(
        self, down: Sequence[LinearEncoder], up: Sequence[LinearDecoder], generator: torch.Generator
    ) -> None:
        """As :class:`Mlp` starts, uniform with biases 0; a place counts as often as there are windows that it is in.

        Latents with unit norm start as random directions, and the encoder's last layer as their copy, divided by how
        many of them share a place: a dictionary that steps by 1 would else begin with rows many times too large.
        """

        def start(weight: Tensor, fan_in: float, fan_out: float, *, before_hidden: bool) -> None:
            rectified = before_hidden and self.hidden_activation in RECTIFIERS
            logistic = before_hidden and self.hidden_activation == "sigmoid"
            square_bound = 6 / fan_in if rectified else 6 / (fan_in + fan_out + 1)
            uniform(weight, 16 * square_bound if logistic else square_bound, generator)

        for encoder in down:
            n, width = encoder.W_enc.shape
            start(encoder.W_enc, width, n * _overlap(encoder), before_hidden=encoder is not down[-1])
        for decoder in up:
            n, width = decoder.W_dec.shape
            start(decoder.W_dec, n * _overlap(decoder), width, before_hidden=decoder is not up[-1])
        if self.unit_norm and start_as_dictionary(down[-1], up[0], generator) and not down[-1].W_enc.is_meta:
            n, width = up[0].W_dec.shape
            with torch.no_grad():
                down[-1].W_enc.div_(max(1.0, n * _overlap(up[0]) / width))


# ------------------------------------------------------------------------------------------------- where


class Window(NamedTuple):
    """A window that steps over a grid. Each of h and w, or t alone, has its own size."""

    grid: Shape
    kernel: Shape
    stride: Shape

    @property
    def places(self) -> Shape:
        """How often it stops along each side."""
        return tuple(-(-n // stride) for n, stride in zip(self.grid, self.stride, strict=True))

    @property
    def border(self) -> list[tuple[int, int]]:
        """How far the first window begins before the grid, and the last one ends beyond it, along each side."""
        steps = zip(self.grid, self.kernel, self.stride, self.places, strict=True)
        beyond = [(places - 1) * stride + kernel - n for n, kernel, stride, places in steps]
        return [(both // 2, both - both // 2) for both in beyond]

    @property
    def overlap(self) -> float:
        """In how many windows a place is, on average."""
        return math.prod(self.kernel) / math.prod(self.stride)


def _window(grid: Shape, kernel: int, stride: int) -> Window:
    return Window(grid, (kernel,) * len(grid), (stride,) * len(grid))


def _overlap(layer: Any) -> float:
    return layer.window.overlap if isinstance(layer, Convolution | Deconvolution) else 1.0


# ------------------------------------------------------------------------------------------------- layers


class Convolution(LinearEncoder):
    """A linear layer on every window: (B, C, *grid) -> (B, N, *places). Row j of W_enc is filter j, (C, *kernel)."""

    def __init__(self, n_channels: int, n_maps: int, window: Window) -> None:
        super().__init__((n_channels, *window.kernel), n_maps)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        convolve = F.conv1d if len(self.window.grid) == 1 else F.conv2d
        n_places = self.window.places[-1]
        border = [n for both in reversed(self.window.border) for n in both]  # F.pad begins with the last side
        border[1] += _to_fill_lines(n_places, x) * self.window.stride[-1]
        weight = self.W_enc.view(-1, *self.input_shape)
        return convolve(F.pad(x, border), weight, self.b_enc, stride=self.window.stride).narrow(-1, 0, n_places)


class Deconvolution(LinearDecoder):
    """The mirror of a convolution: (B, N, *places) -> (B, C, *grid). Row j of W_dec is filter j, (C, *kernel)."""

    def __init__(self, n_maps: int, n_channels: int, window: Window) -> None:
        super().__init__(n_maps, (n_channels, *window.kernel))
        self.b_dec = torch.nn.Parameter(torch.zeros(n_channels, dtype=torch.float32))  # the same at every place
        self.window = window

    def forward(self, latents: Tensor) -> Tensor:
        spread = F.conv_transpose1d if len(self.window.grid) == 1 else F.conv_transpose2d
        wide = F.pad(latents, (0, _to_fill_lines(self.window.places[-1], latents)))
        before = [first for first, _ in self.window.border]
        weight = self.W_dec.view(-1, *self.target_shape)
        y = spread(wide, weight, self.b_dec, stride=self.window.stride, padding=before)
        for side, n in enumerate(self.window.grid, start=2):
            y = y.narrow(side, 0, n)  # what lies beyond the border
        return y


def _to_fill_lines(n_places: int, rows: Tensor) -> int:
    """How many places to add at inference, so that a row's result does not depend on its place in the batch.

    In float64 torch multiplies row by row, and may round a row differently where it starts at another offset within a
    cache line (``rows.aligned`` does the same for full layers). In float32 it does not.
    """
    per_line = CACHE_LINE // rows.element_size()
    return 0 if torch.is_grad_enabled() or rows.dtype != torch.float64 else -n_places % per_line


class ConvEncoder(MlpEncoder):
    """Convolutions, then a full layer where latents are a vector: (B, *input shape) -> (B, P) or (B, P, *places)."""

    def __init__(self, layers: Iterable[LinearEncoder], hidden_activation: str, input_shape: Shape) -> None:
        super().__init__(layers, hidden_activation)
        self.input_shape = input_shape

    def below(self, x: Tensor, depth: int) -> Tensor:
        return super().below(x.reshape(-1, *self.input_shape), depth)


class ConvDecoder(MlpDecoder):
    """The mirror: (B, L) or (B, L, *places) -> (B, *target shape)."""

    def __init__(self, layers: Iterable[LinearDecoder], hidden_activation: str, target_shape: Shape) -> None:
        super().__init__(layers, hidden_activation)
        self.target_shape = target_shape

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents).reshape(-1, *self.target_shape)


# ------------------------------------------------------------------------------------------------- settings


def _check_one_of(what: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise ValueError(f"expected {what} to be one of {', '.join(known)}; got {value!r:.60}")


def _one_or_each(what: str, value: Any, n: int) -> Shape:
    return _whole(what, value if isinstance(value, list | tuple) else (value,) * n, range(n, n + 1))


def _whole(what: str, values: Any, counts: range, at_most: int | None = None) -> Shape:
    """Whole numbers from 1, as many as allowed."""
    try:
        numbers = tuple(operator.index(value) for value in values)
    except TypeError:
        numbers = (0,)
    if len(numbers) not in counts or min(numbers, default=1) < 1 or max(numbers, default=1) > (at_most or math.inf):
        how_many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        limit = f" to {at_most:,}" if at_most else ""
        raise ValueError(f"expected {what} to be {how_many} whole numbers from 1{limit}; got {values!r:.60}")
    return numbers


def _target_channels(sizes: Sizes, input_shape: Shape) -> int:
    n_channels, *grid = input_shape
    if sizes.target_shape == sizes.input_shape:
        return n_channels
    if list(sizes.target_shape[1:]) == grid:
        return sizes.target_shape[0]
    raise ValueError(
        f"a convolutional decoder rebuilds rows place by place: expected targets of shape {sizes.input_shape} or "
        f"(channels, {', '.join(map(str, grid))}); got {sizes.target_shape}"
    )


def _by(grid: Shape) -> str:
    """(7, 9) -> "7 x 9"."""
    return " x ".join(map(str, grid))
