"""A linear autoencoder with its preprocess folded into the weights, and back: what every peer's format is about."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewfire.activations import Activation, MatchingPursuit
from fewfire.autoencoder import Autoencoder
from fewfire.formats.rules import plain_rule
from fewfire.networks import Linear
from fewfire.preprocess import Center, Chain, MinMax, Preprocess, Standardize, Whiten

__all__ = ["Dictionary", "fold", "rows_kept"]


@dataclass(frozen=True)
class Dictionary:
    """``z = activation(W_enc x + b_enc)`` and ``x_hat = z W_dec + b_dec``.

    Read from a peer, ``x`` stands for ``scale * row - centre``, and reconstructions are those of it: a peer that takes
    its ``b_dec`` off the row first gives back a model that does so too, in the same arithmetic, with ``b_dec`` in its
    preprocess instead of its decoder. Written for one, ``x`` is the row.
    """

    W_enc: Tensor
    """(L, D)"""
    b_enc: Tensor
    """(L,)"""
    W_dec: Tensor
    """(L, D_out)"""
    b_dec: Tensor
    """(D_out,)"""
    activation: Activation
    """built, with its learned values"""
    centre: Tensor | None = None
    """(D,) None: nothing is taken off the row"""
    scale: float = 1.0

    @property
    def transcodes(self) -> bool:
        """Whether the target has another width than the row."""
        return self.W_dec.shape[1] != self.W_enc.shape[1]

    @property
    def b_centred(self) -> Tensor:
        """(L,) the encoder's bias for a peer that takes ``b_dec`` off the row first.

        Rows far from 0 keep their digits that way: the difference is exact where a product with them is not.
        """
        return self.b_enc + self.W_enc @ self.b_dec

    def to_model(self) -> Autoencoder:
        """The Autoencoder that computes this, in float32, or in float64 where a weight is."""
        n_latents, d_in = self.W_enc.shape
        tensors = {
            "encoder.W_enc": self.W_enc,
            "encoder.b_enc": self.b_enc,
            "decoder.W_dec": self.W_dec,
            "decoder.b_dec": self.b_dec,
            **{f"activation.{name}": value for name, value in self.activation.state_dict().items()},
        }
        if centred := self.centre is not None or self.scale != 1.0:
            mean = torch.zeros(d_in) if self.centre is None else self.centre
            tensors["preprocess.mean"] = mean.double() / self.scale
            tensors["preprocess.scale"] = torch.tensor(1 / self.scale, dtype=torch.float64)
        tied = type(self.activation) is MatchingPursuit
        if tied:
            del tensors["decoder.W_dec"]
        norms = torch.linalg.vector_norm(self.W_dec, dim=1, dtype=torch.float64)
        model = Autoencoder(
            d_in,
            n_latents,
            self.activation,
            d_out=self.W_dec.shape[1],
            # training goes on with rows of norm 1 only where they are; others would be changed by it
            network=Linear(tied=tied, unit_norm=bool(((norms - 1).abs() < 1e-5).all())),
            preprocess="center" if centred else None,
            dtype=torch.float64 if self.W_enc.dtype == torch.float64 else torch.float32,
        )
        model.load_state_dict(tensors)
        return model


def fold(model: Autoencoder) -> Dictionary:
    """The same function of rows of data, in float64, without a preprocess. Rows of any shape are flattened.

    Raises
    ------
    ValueError
        No one linear layer each way computes it.
    """
    if type(model.network) is not Linear or model.network.output != "identity":
        kind = model.network.name if type(model.network) is not Linear else f"output {model.network.output}"
        raise ValueError(f"expected a network of one linear layer each way, which is all that peers have; got {kind}")
    activation = plain_rule(model.activation)
    into, _ = _maps(model.preprocess, model.input_shape)
    same = model.input_shape == model.target_shape
    _, back = _maps(model.preprocess_out or (model.preprocess if same else None), model.target_shape)
    state = {name: tensor.detach().cpu().double() for name, tensor in model.state_dict().items()}
    W_enc, b_enc = state["encoder.W_enc"], state["encoder.b_enc"]
    W_dec = state.get("decoder.W_dec", W_enc)  # tied
    return Dictionary(
        W_enc=into.on_the_right_of(W_enc),
        b_enc=b_enc + W_enc @ into.shift,
        W_dec=back.of(W_dec),
        b_dec=back.of(state["decoder.b_dec"]) + back.shift,
        activation=activation,
    )


def rows_kept(model: Autoencoder) -> str:
    """What becomes of the shape of a row: peers know flat ones only."""
    return "flat" if len(model.input_shape) == 1 else f"flattened from {model.input_shape}"


# ------------------------------------------------------------------------------------------------ preprocess


@dataclass(frozen=True)
class _Affine:
    """``y = x M + shift`` on flat rows: (B, D) -> (B, D). A diagonal M is kept as its diagonal."""

    matrix: Tensor
    """(D,) or (D, D)"""
    shift: Tensor
    """(D,)"""

    def of(self, rows: Tensor) -> Tensor:
        """The linear part: ``rows M``."""
        return rows * self.matrix if self.matrix.ndim == 1 else rows @ self.matrix

    def on_the_right_of(self, weights: Tensor) -> Tensor:
        """(L, D) -> (L, D): weights that read x as these read y, ``weights M^T``."""
        return weights * self.matrix if self.matrix.ndim == 1 else weights @ self.matrix.T

    def then(self, other: _Affine) -> _Affine:
        """First this map, then the other."""
        if self.matrix.ndim == 1 and other.matrix.ndim == 2:
            matrix = self.matrix[:, None] * other.matrix
        else:
            matrix = other.of(self.matrix)
        return _Affine(matrix, other.of(self.shift) + other.shift)


def _maps(preprocess: Preprocess | None, shape: tuple[int, ...]) -> tuple[_Affine, _Affine]:
    """Into model space and back into data space.

    Raises
    ------
    ValueError
        They are not the same linear map for every row, or have not been fitted.
    """
    width = math.prod(shape)
    if preprocess is None:
        nothing = _Affine(torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))
        return nothing, nothing
    if not preprocess.fitted:
        raise ValueError(f"the preprocess {preprocess.name!r} has not been fitted; train the model first")
    kind = type(preprocess)
    if isinstance(preprocess, Chain):
        into, back = _maps(None, shape)
        for step in preprocess.steps:
            step_into, step_back = _maps(step, shape)  # type: ignore[arg-type]
            into, back = into.then(step_into), step_back.then(back)
        return into, back
    if kind in (Standardize, Center, MinMax):
        return _columnwise(preprocess.forward, shape), _columnwise(preprocess.inverse, shape)
    if isinstance(preprocess, Whiten):
        mean, whitening, coloring = (getattr(preprocess, name).cpu() for name in preprocess.fitted_names)
        return _Affine(whitening.T, -mean.flatten() @ whitening.T), _Affine(coloring, mean.flatten())
    raise ValueError(
        f"the preprocess {preprocess.name!r} does not treat every row by the same linear map, so it cannot be folded "
        "into weights, and no peer has it as an option; train with standardize, center, minmax or whiten"
    )


def _columnwise(function: object, shape: tuple[int, ...]) -> _Affine:
    """A map that scales and shifts each column, told by what it makes of 0 and 1."""
    zeros = torch.zeros(1, *shape, dtype=torch.float64)
    shift = function(zeros)  # type: ignore[operator]
    return _Affine((function(zeros + 1) - shift).flatten(), shift.flatten())  # type: ignore[operator]
