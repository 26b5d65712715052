"""Greedy layer-wise pretraining: each layer of a deep autoencoder first learns to rebuild what comes to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fewfire.activations import Activation, Plain
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Layout, Source
from fewfire.networks import HIDDEN_ACTIVATIONS, OUTPUTS, Convolution, Linear, MlpDecoder, MlpEncoder
from fewfire.terms import BCE, MSE, Term

if TYPE_CHECKING:
    from fewfire.trainer.loop import Trainer

__all__ = ["check_layers", "pretrain"]

NEVER = 1 << 62


def check_layers(model: Autoencoder) -> None:
    """Refuse a model that cannot be trained layer by layer.

    Raises
    ------
    ValueError
        It has no hidden layers, its decoder is no mirror of its encoder, or its targets are not its rows.
    """
    encoder, decoder = model.encoder, model.decoder
    if not (isinstance(encoder, MlpEncoder) and isinstance(decoder, MlpDecoder)):
        what = f"hidden layers, got network {model.network.name!r}"
    elif len(encoder.layers) != len(decoder.layers):
        what = "a decoder that mirrors the encoder, got one of another depth"
    elif model.input_shape != model.target_shape:
        what = f"rows that are their own targets, got rows {model.input_shape} and targets {model.target_shape}"
    else:
        return
    raise ValueError(f"pretraining goes layer by layer: expected {what}; leave pretrain_steps out")


def pretrain(trainer: Trainer) -> None:
    """Train the layers of a deep model one after the other, each for ``pretrain_steps``, from the rows on.

    The first stage has the model's first layer for an encoder and its last one for a decoder; the next the layers
    within, and so on up to the latents, which learn with their own activation and terms. What a layer of the decoder
    gives goes through the same non-linearity as in the whole. Hinton & Salakhutdinov 2006;
    Bengio et al. 2007, "Greedy layer-wise training of deep networks"; with a corruption, which then applies to what
    comes to each layer, Vincent et al. 2010, section 3.4.
    """
    for depth in range(len(cast(MlpEncoder, trainer.model.encoder).layers)):
        _train(trainer, _Stage(trainer.model, depth), depth)


def _train(trainer: Trainer, stage: _Stage, depth: int) -> None:
    from fewfire.trainer.loop import Trainer

    class Stages(Trainer):
        def _finish(self) -> None:
            """Nothing to say: the whole is still to come."""

    rows = cast(Source, _Below(trainer.model, trainer.source, depth))
    of_whole: dict[str, Any] = {
        "validation_fraction": 0.0,
        "patience": None,
        "target_l0": None,
        "schedules": {},
        "dead_after": None,
        "pretrain_steps": 0,
    }
    steps = {"steps": trainer.config.pretrain_steps, "epochs": None, "log_every": NEVER}
    config = trainer.config.model_copy(update=of_whole | steps)
    terms = _terms(list(trainer.terms.values()), stage)
    Stages(stage, rows, terms, config, corruption=trainer.corruption, progress=False).fit()


def _terms(wanted: list[Term], stage: _Stage) -> list[Term]:
    """Those of the whole that a stage can have; within, rows are not what cross-entropy needs."""
    if not stage.is_top:
        wanted = [term for term in wanted if isinstance(term, MSE | BCE)]
    usable = [term for term in wanted if term.needs <= stage.gives]
    return usable if any(isinstance(term, MSE | BCE) for term in usable) else [MSE(), *usable]


class _Stage(Autoencoder):
    """A shallow autoencoder around one layer of a deep one: the model's own modules, so that it learns with them."""

    def __init__(self, model: Autoencoder, depth: int) -> None:
        nn.Module.__init__(self)
        encoder, decoder = cast(MlpEncoder, model.encoder), cast(MlpDecoder, model.decoder)
        self.is_top = depth == len(encoder.layers) - 1
        self.outermost = depth == 0
        self.between = HIDDEN_ACTIVATIONS[decoder.hidden_activation]
        self.encoder = encoder.layers[depth]
        self.decoder = cast(Any, decoder.layers[-1 - depth])
        self.activation: Activation = model.activation if self.is_top else Plain(encoder.hidden_activation)
        self.network = Linear(output=model.network.output if self.outermost else "identity")
        self.preprocess = self.preprocess_out = None
        self.layout = Layout()
        self.input_shape = self.target_shape = _shape_below(model, depth)
        with torch.no_grad():
            row = torch.zeros(1, *self.input_shape, dtype=self.dtype, device=self.device)
            self.latent_shape = tuple(self.codes(row)[1].shape[1:])
        self.n_latents = self.latent_shape[0]

    @property
    def gives(self) -> frozenset[str]:
        """A filter that slides is no matrix, and behind what comes within is a non-linearity."""
        slides = isinstance(self.encoder, Convolution)
        return super().gives - {"linear_decoder"} - ({"linear_encoder"} if slides else set())

    @property
    def output(self) -> Callable[[Tensor], Tensor]:
        """Rows as the whole rebuilds them; within, what the next layer of its decoder is given."""
        return OUTPUTS[self.network.output] if self.outermost else self.between


def _shape_below(model: Autoencoder, depth: int) -> tuple[int, ...]:
    with torch.no_grad():
        row = torch.zeros(1, *model.input_shape, dtype=model.dtype, device=model.device)
        return tuple(cast(MlpEncoder, model.encoder).below(row, depth).shape[1:])


class _Below:
    """What comes to one layer, as a Source: computed from the rows as it is asked for."""

    def __init__(self, model: Autoencoder, source: Source, depth: int) -> None:
        self._model, self._source, self._depth = model, source, depth
        self.n_rows = source.n_rows
        self.row_shape = self.target_shape = _shape_below(model, depth)
        self.layout = Layout()
        self.fingerprint = f"{source.fingerprint} below layer {depth}"

    def batches(
        self, batch_size: int, *, seed: int = 0, epoch: int = 0, start: int = 0, shuffle: bool = True
    ) -> Iterator[Batch]:
        model = self._model
        for batch in self._source.batches(batch_size, seed=seed, epoch=epoch, start=start, shuffle=shuffle):
            with torch.no_grad():
                x = model.to_model_space(batch.x_in.to(model.device)).to(model.dtype)
                hidden = cast(MlpEncoder, model.encoder).below(x, self._depth)
            yield Batch(hidden, hidden, batch.rows)
