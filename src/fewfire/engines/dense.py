"""The training step of small textbook models, with the chain rule written out into memory that is used again.

For one linear layer each way, what torch's autograd costs around the five matrix products is half of a small step: a
graph is built and thrown away, every operation asks for memory, and the loss is taken apart one small operation at a
time. Here the derivatives are written down, so that each operation writes where the last step's result lay.

What it gives is what ``AutogradEngine`` gives, up to rounding. Some steps go that way in part or in whole: a penalty at
its extremes (a saturated KL, AuxK where latents are dead) is differentiated by autograd alone, and a reconstruction
error that looks at the corruption (``intact`` below 1, as a schedule may make it) is a step of ``AutogradEngine``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor

from fewfire.activations import Plain, ReLU, Sigmoid
from fewfire.contracts import Batch, ForwardOutput, Job, StepReport, TrainState
from fewfire.engines.autograd import AutogradEngine, labelled, uncommitted
from fewfire.engines.optimizers import Adam
from fewfire.networks import Linear, LinearDecoder, LinearEncoder, TiedDecoder
from fewfire.terms import BCE, L1, MSE, AuxK, KLSparsity, WeightDecay

__all__ = ["DenseEngine", "watched"]

aten = torch.ops.aten

SOUND_MEANS = 1e-30, 0.9
"""Between these a mean activation is as good as its logarithms: no row's underflow matters, and 1 minus it loses no
digit. Beyond, the term itself is asked, which has a form for extremes."""


class DenseEngine:
    """One step of a linear autoencoder with logistic, rectified or plain units, without a graph."""

    name: ClassVar[str] = "dense"

    def __init__(self, job: Job) -> None:
        self.model = job.model
        self.terms = labelled(job.terms)
        self.errors = [term for term in job.terms if type(term) in (MSE, BCE)]
        self.clip_norm = job.optimizer.clip_norm
        self.parameters = dict(job.model.named_parameters())
        self.weights = [name for name, p in self.parameters.items() if p.ndim > 1]
        self.optimizer = Adam(self.parameters, job.optimizer.betas, job.optimizer.eps)
        self.general = AutogradEngine(job)
        self.general.optimizer = self.optimizer  # one state, whoever makes the step

        self.W_enc, self.b_enc = job.model.encoder.W_enc, job.model.encoder.b_enc
        self.W_dec, self.b_dec = job.model.decoder.W_dec, job.model.decoder.b_dec
        self.tied = self.W_dec is self.W_enc
        self.logistic_output = job.model.network.output == "sigmoid"
        self.unit = _unit(job.model.activation)
        self.gradient = torch.zeros(sum(p.numel() for p in self.parameters.values())).to(self.W_enc)
        """of all parameters, one after the other"""
        parts = torch.split(self.gradient, [p.numel() for p in self.parameters.values()])
        self.gradients = {name: part.view_as(p) for part, (name, p) in zip(parts, self.parameters.items(), strict=True)}
        self.room = _Room(job.model, 0)

    @classmethod
    def refuses(cls, job: Job) -> str | None:
        return _refused_model(job.model) or _refused_objective(job)

    @torch.no_grad()
    def step(self, batch: Batch, state: TrainState) -> StepReport:
        for term in self.errors:
            if term.intact != 1:
                return self.general.step(batch, state)
        n = len(batch.x)
        room = self.room = self.room if self.room.rows == n else self.room.of(n)
        x_in, x = batch.x_in.flatten(1), batch.x.flatten(1)
        out = self._forward(room, x_in, x, batch)
        asked = _Asked(self, room, out, x, state)
        scalars = {label: VALUES[type(term)](asked, term) for label, term in self.terms.items()}
        loss = _weighted(self.terms, scalars)
        scalars = {"loss": loss, **scalars}
        self._backward(room, asked, x_in)
        norm = torch.linalg.vector_norm(self.gradient)
        if not math.isfinite(loss + norm):
            return uncommitted(batch, out, scalars)
        if self.clip_norm is not None and norm > self.clip_norm:
            self.gradient.mul_(self.clip_norm / norm)
        self.optimizer.move(self.gradients, state.lr)
        self.model.decoder.constrain()
        self.model.activation.commit(out, state)
        return self._committed(room, scalars)

    def _forward(self, room: _Room, x_in: Tensor, x: Tensor, batch: Batch) -> ForwardOutput:
        torch.addmm(self.b_enc, x_in, self.W_enc.t(), out=room.z)
        self.unit.forward(room.z, room.a)
        torch.addmm(self.b_dec, room.a, self.W_dec, out=room.logits)
        if self.logistic_output:
            torch.sigmoid(room.logits, out=room.recon)
        torch.sub(room.recon, x, out=room.error)
        recon, logits = room.recon.view_as(batch.x), room.logits.view_as(batch.x)
        return ForwardOutput(batch.x, batch.x_in, room.z, room.a, recon, logits, batch.chosen)

    def _backward(self, room: _Room, asked: _Asked, x_in: Tensor) -> None:
        """Gradients of ``asked``'s weighted terms, from the output to the input.

        A factor that all of a product shares is left to the product.
        """
        grad, last = self.gradients, asked.last
        slope, factor = self._output_slope(room, asked)
        torch.sum(slope, 0, out=grad["decoder.b_dec"]).mul_(factor)
        g_dec = grad["encoder.W_enc" if self.tied else "decoder.W_dec"]
        torch.addmm(g_dec, room.a.t(), slope, beta=0, alpha=factor, out=g_dec)
        g = torch.addmm(room.g, slope, self.W_dec.t(), beta=0, alpha=factor, out=room.g)
        for through_latents in asked.latent_slopes:
            g.add_(through_latents)
        self.unit.backward(g, room.z, room.a)
        for beside_latents in last.get("z", ()):
            g.add_(beside_latents)
        torch.sum(g, 0, out=grad["encoder.b_enc"])
        g_enc = grad["encoder.W_enc"]
        torch.addmm(g_enc, g.t(), x_in, beta=1 if self.tied else 0, out=g_enc)
        for name, weight in asked.decays:
            grad[name].add_(self.parameters[name], alpha=weight)
        for through_decoder in last.get("W_dec", ()):
            g_dec.add_(through_decoder)
        if self.model.decoder.unit_norm:  # what ``project_gradient`` does
            along = torch.linalg.vecdot(g_dec, self.W_dec)
            g_dec.addcmul_(along[:, None], self.W_dec, value=-1)

    def _output_slope(self, room: _Room, asked: _Asked) -> tuple[Tensor, float]:
        """The derivative of the errors by the decoder's logits, (B, D): a tensor, and the factor that goes with it.

        Of squared error behind a logistic output ``2 (y - x) y (1 - y)``, of cross-entropy ``y - x``.
        """
        squared, crossed = 2 * asked.squared / room.rows, asked.crossed / room.rows
        if not self.logistic_output:
            return room.error, squared
        if squared == 0:
            return room.error, crossed
        slope = aten.sigmoid_backward.grad_input(room.error, room.recon, grad_input=room.spare)
        if crossed == 0:
            return slope, squared
        return slope.mul_(squared).add_(room.error, alpha=crossed), 1.0

    def _committed(self, room: _Room, scalars: dict[str, Tensor]) -> StepReport:
        """As numbers: torch reduces them ten times as fast as bools."""
        self.unit.active(room.a, room.g)
        counts = room.g.sum(0)
        scalars["l0"] = counts.sum().float() / room.rows
        if self.model.activation.counts == "sum":
            scalars["sum"] = room.a.sum() / room.rows
        return StepReport(scalars, counts > 0)

    def state_dict(self) -> dict[str, Tensor]:
        return self.optimizer.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_state_dict(tensors)


# ------------------------------------------------------------------------------------------------- what it takes


def _refused_model(model: Any) -> str | None:
    """Types are compared exactly: a subclass may have overridden anything."""
    if type(model.network) is not Linear or type(model.encoder) is not LinearEncoder:
        return "only linear networks"
    if type(model.decoder) not in (LinearDecoder, TiedDecoder) or model.network.output not in ("identity", "sigmoid"):
        return "only linear networks"
    if type(model.activation) not in (ReLU, Sigmoid, Plain):
        return "only relu, sigmoid and plain units"
    own = {"encoder.W_enc", "encoder.b_enc", "decoder.b_dec"}
    own |= set() if type(model.decoder) is TiedDecoder else {"decoder.W_dec"}
    parameters = dict(model.named_parameters())
    if set(parameters) != own or not all(p.requires_grad and p.is_contiguous() for p in parameters.values()):
        return "only weights and biases, all of them learned"
    if any(p.dtype not in (torch.float32, torch.float64) for p in parameters.values()):
        return "only float32 and float64"
    if watched(model):
        return "only models without hooks or replaced methods"
    return None


def watched(model: Any) -> bool:
    """Whether somebody wants to be called in the forward or backward pass of a model or of a part of it."""
    if any(p._backward_hooks for p in model.parameters()):
        return True
    return any(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
        or any(callable(value) for value in vars(part).values())
        for part in model.modules()
    )


def _refused_objective(job: Job) -> str | None:
    kinds = [type(term) for term in job.terms]
    if job.optimizer.name != "adam":
        return "only adam"
    if job.dtype == "bfloat16":
        return "only float32 and float64"
    if any(kind not in VALUES for kind in kinds):
        return "only the terms mse, bce, l1, kl, weight_decay and auxk"
    if MSE not in kinds and BCE not in kinds:  # a parameter without a gradient is not stepped
        return "only with mse or bce"
    if any(term.intact != 1 for term in job.terms if type(term) in (MSE, BCE)):
        return "only with intact at 1"
    if any(term.by_decoder_norm for term in job.terms if type(term) is L1):
        return "only l1 without by_decoder_norm"
    if BCE in kinds and job.model.network.output != "sigmoid":
        return "only bce of output sigmoid"
    if KLSparsity in kinds and type(job.model.activation) is not Sigmoid:
        return "only kl of sigmoid units"
    return None


# ------------------------------------------------------------------------------------------- what it works with


class _Room:
    """Memory for one pass over some rows; of fewer rows than before, a part of what was there."""

    def __init__(self, model: Any, rows: int, lender: _Room | None = None) -> None:
        self.model, self.rows = model, rows
        latents, width = len(model.encoder.b_enc), len(model.decoder.b_dec)
        like = model.encoder.W_enc.detach()
        logistic = model.network.output == "sigmoid"

        def lent(name: str, columns: int) -> Tensor:
            whole: Tensor = getattr(lender, name) if lender is not None else like.new_empty(rows, columns)
            return whole[:rows]

        self.z, self.a = lent("z", latents), lent("a", latents)
        self.g = lent("g", latents)
        """the gradient by the latents, then by the pre-activations"""
        self.logits = lent("logits", width)
        self.recon = lent("recon", width) if logistic else self.logits
        self.error = lent("error", width)
        self.spare = lent("spare", width)
        self.largest = lender or self

    def of(self, rows: int) -> _Room:
        return _Room(self.model, rows, self.largest if rows <= self.largest.rows else None)


class _Unit(NamedTuple):
    """An activation, its derivative, and which units fire: each writes into memory that it is given."""

    forward: Callable[[Tensor, Tensor], Any]
    """(z, a): a becomes the latents"""
    backward: Callable[[Tensor, Tensor, Tensor], Any]
    """(g, z, a): g, the gradient by a, becomes that by z"""
    active: Callable[[Tensor, Tensor], Any]
    """(a, mask): the mask becomes 1 where a unit fires, else 0"""


def _fires(a: Tensor, mask: Tensor) -> None:
    torch.ne(a, 0, out=mask)


_RELU = _Unit(
    lambda z, a: torch.clamp_min(z, 0, out=a),
    lambda g, z, a: aten.threshold_backward.grad_input(g, a, 0, grad_input=g),
    _fires,
)
_LOGISTIC = _Unit(
    lambda z, a: torch.sigmoid(z, out=a),
    lambda g, z, a: aten.sigmoid_backward.grad_input(g, a, grad_input=g),
    _fires,
)
_PLAIN = {
    "identity": _Unit(lambda z, a: a.copy_(z), lambda g, z, a: None, _fires),
    "relu": _RELU,
    "sigmoid": _LOGISTIC,
    "tanh": _Unit(
        lambda z, a: torch.tanh(z, out=a), lambda g, z, a: aten.tanh_backward.grad_input(g, a, grad_input=g), _fires
    ),
    "gelu": _Unit(
        lambda z, a: aten.gelu.out(z, out=a), lambda g, z, a: aten.gelu_backward.grad_input(g, z, grad_input=g), _fires
    ),
    "elu": _Unit(
        lambda z, a: aten.elu.out(z, out=a),
        lambda g, z, a: aten.elu_backward.grad_input(g, 1, 1, 1, False, z, grad_input=g),
        _fires,
    ),
}


def _unit(activation: Any) -> _Unit:
    if type(activation) is ReLU:
        return _RELU
    if type(activation) is Sigmoid:  # counted as firing above one half
        return _LOGISTIC._replace(active=lambda a, mask: torch.gt(a, 0.5, out=mask))
    return _PLAIN[activation.function]


# --------------------------------------------------------------------------------------------------- the terms


class _Asked:
    """What the terms are asked at one step, and what they ask of the way back, weights included."""

    def __init__(self, engine: DenseEngine, room: _Room, out: ForwardOutput, x: Tensor, state: TrainState) -> None:
        self.engine, self.room, self.out, self.x, self.state = engine, room, out, x, state
        self.squared = 0.0
        """the weight of squared error"""
        self.crossed = 0.0
        """the weight of cross-entropy"""
        self.latent_slopes: list[Tensor | float] = []
        """derivatives by the latents; where every row has the same, one row; where every latent has, a number"""
        self.decays: list[tuple[str, float]] = []
        self.last: dict[str, list[Tensor]] = {}
        """derivatives by the pre-activations and by the decoder's weights, from autograd"""


def _mse(asked: _Asked, term: MSE) -> Tensor:
    room = asked.room
    asked.squared += term.weight
    return torch.mul(room.error, room.error, out=room.spare).sum() / room.rows


def _bce(asked: _Asked, term: BCE) -> Tensor:
    """Of logits z, targets x and y = sigmoid(z): ``max(z, 0) - x z - log(max(y, 1 - y))``, which is always finite."""
    room = asked.room
    asked.crossed += term.weight
    linear = torch.clamp_min(room.logits, 0, out=room.spare).addcmul_(asked.x, room.logits, value=-1).sum()
    likelier = torch.sub(room.recon, 0.5, out=room.spare).abs_().add_(0.5)
    return (linear - _sum_of_logs(likelier.view(-1))) / room.rows


def _sum_of_logs(x: Tensor) -> Tensor:
    """Of numbers from 1/2 to 1, as logarithms of products of sixteen: logarithms cost ten times as much. Spoils x."""
    n = len(x)
    for _ in range(4):
        half = n // 2
        x[:half].mul_(x[n - half : n])
        n -= half
    return x[:n].log().sum()


def _l1(asked: _Asked, term: L1) -> Tensor:
    a, share = asked.room.a, term.weight / asked.room.rows
    if type(asked.engine.model.activation) is not Plain:  # never below 0; and where it is 0, so is its slope
        asked.latent_slopes.append(share)
        return a.sum() / asked.room.rows
    asked.latent_slopes.append(torch.sign(a).mul_(share))
    return a.abs().sum() / asked.room.rows


def _kl(asked: _Asked, term: KLSparsity) -> Tensor:
    """``rho log(rho / r) + (1 - rho) log((1 - rho) / (1 - r))`` of means r that are not extreme."""
    rho, mean = term.rho, asked.room.a.mean(0)
    low, high = torch.aminmax(mean)
    if not (SOUND_MEANS[0] < float(low) and float(high) < SOUND_MEANS[1]):
        return _by_autograd(asked, term)
    rest = 1 - mean
    asked.latent_slopes.append(((1 - rho) / rest - rho / mean).mul_(term.weight / asked.room.rows))
    constant = rho * math.log(rho) + (1 - rho) * math.log1p(-rho)
    return (constant - rho * mean.log() - (1 - rho) * rest.log()).sum()


def _weight_decay(asked: _Asked, term: WeightDecay) -> Tensor:
    engine, total = asked.engine, asked.room.z.new_zeros(())
    for name in engine.weights:
        weight, unused = engine.parameters[name], engine.gradients[name]
        total += torch.mul(weight, weight, out=unused).sum()
        asked.decays.append((name, term.weight))
    return total.div_(2)


def _auxk(asked: _Asked, term: AuxK) -> Tensor:
    if not asked.state.any_dead:
        return asked.out.recon.new_zeros(())
    return _by_autograd(asked, term)


def _by_autograd(asked: _Asked, term: AuxK | KLSparsity) -> Tensor:
    """A term that depends on the pre-activations and the decoder's weights alone, differentiated by itself."""
    engine = asked.engine
    z = asked.room.z.detach().requires_grad_()
    with torch.enable_grad():
        value = term(engine.model, asked.out._replace(pre_acts=z), asked.state)
        slopes = torch.autograd.grad(value, (z, engine.W_dec), allow_unused=True)
    for name, slope in zip(("z", "W_dec"), slopes, strict=True):
        if slope is not None:
            asked.last.setdefault(name, []).append(slope * term.weight)
    return value.detach()


VALUES: dict[type[Any], Callable[[_Asked, Any], Tensor]] = {
    MSE: _mse,
    BCE: _bce,
    L1: _l1,
    KLSparsity: _kl,
    WeightDecay: _weight_decay,
    AuxK: _auxk,
}
"""A term's value before its weight. Its gradient is left in ``asked``."""


def _weighted(terms: Mapping[str, Any], values: Mapping[str, Tensor]) -> Tensor:
    """Sum of weight times value."""
    total = None
    for label, value in values.items():
        weight = terms[label].weight
        total = value * weight if total is None else total.add_(value, alpha=weight)
    return cast(Tensor, total)
