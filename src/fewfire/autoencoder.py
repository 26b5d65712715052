"""The Autoencoder: an encoder, an Activation and a decoder. There is no path around the latents."""

from __future__ import annotations

import copy
import inspect
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

from fewfire import rng
from fewfire.activations import Activation
from fewfire.contracts import ForwardOutput, Layout, SparseCodes, TrainState
from fewfire.networks import OUTPUTS, Network, Sizes
from fewfire.preprocess import Preprocess, make_preprocess
from fewfire.rows import as_rows, check_finite, column_names
from fewfire.sparse_codes import decode_sparse, densify, encode_sparse, finds_codes

__all__ = ["Autoencoder", "HasModel", "as_model", "default_latents"]

FEWEST_LATENTS, MOST_LATENTS, MOST_WEIGHTS = 64, 16_384, 2**22
"""of a default width: a table of few columns has room for a dictionary, and pictures do not fill the memory with one.
The weights are the encoder's, 16 MiB; training holds eight times that, the decoder and adam's averages with it."""

CHUNK = 64
"""Rows per product at inference. A matrix product may round a row differently in batches of different sizes;
in chunks of one size, filled up with zeros, a row encoded alone has the bits it has in any batch."""


class Autoencoder(nn.Module):
    """
    ::

        z = activation(encoder(x_in))        x_hat = decoder(z)

    Parameters
    ----------
    d_in
        Input width D, or the shape of a row such as ``(channels, h, w)``.
    n_latents
        L.
    activation
        An ``Activation``, its name, or ``{"name": "topk", "k": 32}``.
    network
        A ``Network``, its name, or ``{"name": "linear", "tied": True}``: the shape of encoder and decoder.
    d_out
        Width or shape of a target row; None: the input's. A transcoder's output, or (views, D) for a crosscoder.
    preprocess, preprocess_out
        Data space to model space, of inputs and of targets; ``preprocess_out`` None: the same when the target has
        the input's shape, else none. Trainer fits them; the model carries them.
    layout
        How a person sees a row, for pictures.
    dtype
        Of the parameters.
    seed
        Of the first weights. The global generators are not touched.

    Notes
    -----
    Two spaces. ``forward`` works in model space, after preprocessing: it is what training, terms and engines use.
    ``encode``, ``encode_sparse``, ``decode`` and ``reconstruct`` take and give data space, compute in float32 for
    dtypes whose values it holds exactly and in float64 for the others (float64, int32, int64), and track no gradient.
    """

    def __init__(
        self,
        d_in: int | tuple[int, ...],
        n_latents: int,
        activation: str | Mapping[str, Any] | Activation = "topk",
        *,
        network: str | Mapping[str, Any] | Network = "linear",
        d_out: int | tuple[int, ...] | None = None,
        preprocess: Any = None,
        preprocess_out: Any = None,
        layout: Layout | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.input_shape = _shape("d_in", d_in)
        self.target_shape = self.input_shape if d_out is None else _shape("d_out", d_out)
        self.n_latents = _positive("n_latents", n_latents)
        self.layout = layout or Layout()
        self.layout.check(self.input_shape)

        # copies: what is filled in with the width, or fitted, must not reach another model's
        self.activation = copy.deepcopy(Activation.from_config(activation))
        self.activation.build(self.n_latents)
        self.network = copy.deepcopy(Network.from_config(network))
        self.encoder, self.decoder, self.latent_shape = self.network.build(
            self._sizes(),
            unit_norm=self.activation.unit_norm,
            generator=rng.generator(seed, "weights"),
        )
        self._check_needs()
        self.preprocess: Preprocess | None = copy.deepcopy(make_preprocess(preprocess))
        self.preprocess_out: Preprocess | None = copy.deepcopy(make_preprocess(preprocess_out))
        self.to(dtype)  # a preprocess keeps its statistics in float64 all the same

    # ------------------------------------------------------------------------------ model space

    def forward(self, x_in: Tensor, x: Tensor | None = None, state: TrainState | None = None) -> ForwardOutput:
        """(B, *input shape) -> ForwardOutput, all in model space.

        ``x`` is the target when it is not the input itself; ``state`` is given during training only.
        """
        pre_acts, latents = self.codes(x_in, state)
        logits = self.decoder(latents).to(self.dtype)
        recon = self.output(logits)
        return ForwardOutput(x_in if x is None else x, x_in, pre_acts, latents, recon, logits)

    @torch.no_grad()
    def recon(self, x_in: Tensor) -> Tensor:
        """(B, *input shape) -> (B, *target shape), both in model space, as at inference and without a gradient."""
        return self._decode_sparse(*encode_sparse(self, x_in)) if finds_codes(self) else self(x_in).recon

    def codes(self, x_in: Tensor, state: TrainState | None = None) -> tuple[Tensor, Tensor]:
        """(B, *input shape) -> pre_acts (B, P) and latents (B, *latent shape), in model space."""
        return self.activation.encode(x_in, self, state)

    @property
    def gives(self) -> frozenset[str]:
        """What terms may ask of this model (the table in ``Term``)."""
        linear = self.network.output == "identity"
        network = self.network.gives if linear else self.network.gives - {"linear_decoder"}
        own = {"residual"} if self.input_shape == self.target_shape and linear else set()
        return self.activation.gives | network | own | (frozenset() if linear else {"output_logits"})

    def to_model_space(self, x: Tensor) -> Tensor:
        """Preprocess inputs."""
        return x if self.preprocess is None else self.preprocess(x)

    @property
    def last_bias(self) -> nn.Parameter | None:
        """(P,) or a number a map: the encoder's last ``b_enc``, which pre-activations begin from; None: it has none."""
        biases = [p for name, p in self.encoder.named_parameters() if name.endswith("b_enc")]
        return biases[-1] if biases else None

    @property
    def output(self) -> Callable[[Tensor], Tensor]:
        """What comes after the decoder: identity, or the logistic function."""
        return OUTPUTS[self.network.output]

    def target_to_model_space(self, x: Tensor) -> Tensor:
        """Preprocess targets."""
        preprocess = self._preprocess_out
        return x if preprocess is None else preprocess(x)

    def target_to_data_space(self, recon: Tensor, like: Tensor | None = None) -> Tensor:
        """Undo ``target_to_model_space``; ``like`` restores what was removed per row, such as its mean."""
        preprocess = self._preprocess_out
        return recon if preprocess is None else preprocess.inverse(recon, like=like)

    # ------------------------------------------------------------------------------ data space

    def encode(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """(B, *input shape) -> latents (B, *latent shape). A row alone gives the bits it gives in any batch.

        Raises
        ------
        ValueError
            The rows do not have the model's input shape, or one of them holds NaN or infinity.
        """
        rows, model = self._ready(x, self.input_shape)
        check_finite(rows, columns=self.layout.columns)
        with torch.no_grad():
            if finds_codes(model):
                return densify(encode_sparse(model, model._in_model_space(rows)), model.n_latents)
            return _in_chunks(lambda chunk: model.codes(model.to_model_space(chunk))[1], rows)

    def encode_sparse(self, x: Tensor | npt.ArrayLike) -> SparseCodes:
        """(B, *input shape) -> SparseCodes (B, K): the latents that are not 0, K the most of any row.

        Logistic units are never 0, so all of theirs are kept, and ``decode`` gives what dense latents would, up to
        rounding.
        """
        rows, model = self._ready(x, self.input_shape)
        if finds_codes(model):
            check_finite(rows, columns=self.layout.columns)
            return encode_sparse(model, model._in_model_space(rows))
        latents = model.encode(rows).flatten(1)
        k = max(1, int((latents != 0).sum(1).max())) if len(latents) else 1
        top = latents.abs().topk(k, dim=1)
        values = latents.gather(1, top.indices)
        return SparseCodes(top.indices.where(values != 0, 0), values)

    def decode(self, codes: Tensor | npt.ArrayLike | SparseCodes, like: Tensor | npt.ArrayLike | None = None) -> Tensor:
        """Latents (B, *latent shape), or SparseCodes, -> reconstructions (B, *target shape).

        ``like``: data-space rows that lend what preprocessing removed from each row, such as its mean.
        """
        with torch.no_grad():
            if isinstance(codes, SparseCodes):
                values, model = self._ready(codes.values, tuple(codes.values.shape[1:]), "values")
                recon = model._decode_sparse(torch.as_tensor(codes.indices).to(self.device, torch.int64), values)
            else:
                latents, model = self._ready(codes, self.latent_shape, "latents")
                recon = model._decode_dense(latents)
            lent = None if like is None else as_rows(like, "like").to(recon.device, recon.dtype)
            return model.target_to_data_space(recon, lent)

    def reconstruct(self, x: Tensor | npt.ArrayLike) -> Tensor:
        """(B, *input shape) -> (B, *target shape): ``decode(encode(x), like=x)``."""
        rows, model = self._ready(x, self.input_shape)
        codes = model.encode_sparse(rows) if finds_codes(model) else model.encode(rows)
        return model.decode(codes, like=rows if self.input_shape == self.target_shape else None)

    def reconstruct_in_model_space(self, x: Tensor | npt.ArrayLike, codes: SparseCodes | None = None) -> Tensor:
        """(B, *input shape) -> (B, *target shape): what training compares with ``target_to_model_space(target)``.

        ``codes``: what ``encode_sparse(x)`` gave, where it was asked already.

        On the way to data space and back a preprocess may lose some of the error: ``row_mean`` removes the
        reconstruction's own mean, ``clip_scale`` clips it.
        """
        rows, model = self._ready(x, self.input_shape)
        with torch.no_grad():
            if codes is None and finds_codes(model):
                codes = model.encode_sparse(rows)
            if codes is None:
                return model._decode_dense(model.encode(rows))
            return model._decode_sparse(codes.indices, codes.values.to(model.dtype))

    # ------------------------------------------------------------------------------ description

    def config(self) -> dict[str, Any]:
        """Plain values from which ``from_config`` builds the same architecture."""
        return {
            "d_in": _plain_shape(self.input_shape),
            "n_latents": self.n_latents,
            "d_out": _plain_shape(self.target_shape),
            "activation": self.activation.config(),
            "network": self.network.config(),
            "preprocess": self.preprocess.config() if self.preprocess else None,
            "preprocess_out": self.preprocess_out.config() if self.preprocess_out else None,
            "layout": self.layout.to_dict(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Autoencoder:
        """The architecture that ``config()`` described, with first weights.

        Raises
        ------
        ValueError
            A key is unknown or missing, or a value is not one that the architecture can take.
        """
        known = set(inspect.signature(cls).parameters) - {"seed"}
        if set(config) != known:
            raise ValueError(
                f"expected the keys {', '.join(sorted(known))} in an architecture; "
                f"unknown: {sorted(set(config) - known)}, missing: {sorted(known - set(config))}"
            )
        if config["dtype"] not in ("float32", "float64", "bfloat16", "float16"):
            raise ValueError(f"expected dtype float32, float64, bfloat16 or float16; got {config['dtype']!r}")
        settings = dict(config)
        for side in ("d_in", "d_out"):
            settings[side] = tuple(settings[side]) if isinstance(settings[side], list) else settings[side]
        settings["layout"] = Layout.from_dict(settings["layout"])
        settings["dtype"] = getattr(torch, settings["dtype"])
        return cls(**settings)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.encoder.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    def extra_repr(self) -> str:
        return f"{self.input_shape} -> {self.latent_shape} -> {self.target_shape}"

    # ------------------------------------------------------------------------------ private

    @property
    def _preprocess_out(self) -> Preprocess | None:
        same = self.input_shape == self.target_shape
        return self.preprocess_out or (self.preprocess if same else None)

    def _sizes(self) -> Sizes:
        activation = self.activation
        shapes = (self.input_shape, self.target_shape)
        return Sizes(*shapes, self.n_latents, activation.n_pre, self.layout, activation.tied)

    def _check_needs(self) -> None:
        """Refuse an activation that asks for what network and shapes do not give."""
        if missing := sorted(self.activation.needs - self.gives):
            raise ValueError(
                f"activation {self.activation.name!r} needs {', '.join(missing)}: targets of the input's shape "
                f"{self.input_shape}, got {self.target_shape}, and output identity, got {self.network.output}"
            )

    def _ready(self, x: Any, shape: tuple[int, ...], what: str = "x") -> tuple[Tensor, Autoencoder]:
        """Checked rows on the model's device in the computing dtype, and the model in that dtype."""
        if what == "x" and not isinstance(x, Tensor):
            self.layout.check_columns(column_names(x))
        rows = as_rows(x, what).to(self.device)
        if tuple(rows.shape[1:]) != shape or rows.ndim < 2:
            raise ValueError(f"expected {what} of shape (rows, {', '.join(map(str, shape))}); got {tuple(rows.shape)}")
        return rows, self._in_dtype(rows.dtype)

    def _in_model_space(self, rows: Tensor) -> Tensor:
        return rows if self.preprocess is None else _in_chunks(self.to_model_space, rows)

    def _decode_dense(self, latents: Tensor) -> Tensor:
        return _in_chunks(lambda z: self.output(self.decoder(z)), latents)

    def _decode_sparse(self, indices: Tensor, values: Tensor) -> Tensor:
        """A few rows at a time become dense, so that (B, L) never has to fit in memory."""
        if indices.shape != values.shape:
            raise ValueError(f"indices {tuple(indices.shape)} and values {tuple(values.shape)} must have one shape")
        logits = decode_sparse(self, SparseCodes(indices, values))
        if logits is not None:
            return logits if self.network.output == "identity" else _in_chunks(self.output, logits)
        width = math.prod(self.latent_shape)

        def dense(i: Tensor, v: Tensor) -> Tensor:
            return v.new_zeros(len(v), width).scatter_add_(1, i, v).view(-1, *self.latent_shape)

        parts = zip(torch.split(indices, 16 * CHUNK), torch.split(values, 16 * CHUNK), strict=True)
        return torch.cat([self._decode_dense(dense(i, v)) for i, v in parts])

    def _in_dtype(self, dtype: torch.dtype) -> Autoencoder:
        """This model, or a copy in another precision: made afresh, for weights may change behind any cache's back."""
        return self if dtype == self.dtype else copy.deepcopy(self).to(dtype)


def default_latents(row_shape: tuple[int, ...]) -> int:
    """How many latents rows of this shape get when nobody says: four for each column, up to 16,384.

    And up to as many as make an encoder of 2**22 weights; but at least 64, or four for each column of a narrow table.
    """
    columns = math.prod(row_shape)
    return min(4 * columns, MOST_LATENTS, max(FEWEST_LATENTS, MOST_WEIGHTS // columns))


class HasModel(Protocol):
    """A fitted estimator."""

    module_: Autoencoder


def as_model(given: Any) -> Autoencoder:
    """A model, or that of a fitted estimator: an estimator is told by its ``fit`` and, once fitted, its ``module_``.

    Raises
    ------
    TypeError, ValueError
        It is no model, or the estimator has not been fitted.
    """
    if isinstance(given, Autoencoder):
        return given
    name = type(given).__name__
    if isinstance(getattr(given, "module_", None), Autoencoder):
        return given.module_  # type: ignore[no-any-return]
    if hasattr(given, "fit") and hasattr(given, "get_params"):
        raise ValueError(f"this {name} has no model yet; call fit(X) first")
    raise TypeError(f"expected an Autoencoder or a fitted estimator; got a {name}")


def _in_chunks(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function`` on chunks of exactly CHUNK rows, the last one filled up with zeros."""
    parts = []
    for rows in torch.split(x, CHUNK):
        short = CHUNK - len(rows)
        full = torch.cat([rows, rows.new_zeros(short, *rows.shape[1:])]) if short else rows
        parts.append(function(full)[: len(rows)])
    return torch.cat(parts) if parts else function(x.new_zeros(CHUNK, *x.shape[1:]))[:0]


def _shape(what: str, size: int | tuple[int, ...]) -> tuple[int, ...]:
    sizes = tuple(size) if isinstance(size, tuple | list) else (size,)
    if not sizes:
        raise ValueError(f"expected {what} to be a width or a shape; got an empty one")
    return tuple(_positive(what, s) for s in sizes)


def _positive(what: str, value: Any) -> int:
    try:
        number = operator.index(value)  # numpy's whole numbers as well
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError(f"expected {what} to be a whole number of at least 1; got {value!r}")
    return number


def _plain_shape(shape: tuple[int, ...]) -> int | list[int]:
    return shape[0] if len(shape) == 1 else list(shape)
