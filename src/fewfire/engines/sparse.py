"""The training step of dictionaries, where only what fires costs anything but the encoder's product.

The gradient of a latent's weights is a sum over the few rows on which it fires; latents that do not fire get none.
So a step is: codes; reconstructions, errors and the codes' gradients; then, latent by latent, gradient and Adam at
once. What each of them computes is written in ``kernels/``, twice: compiled, and in plain torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from fewfire.activations import BatchTopK, JumpReLU, ReLU, TopK
from fewfire.contracts import Batch, Job, StepReport, TrainState
from fewfire.engines.autograd import AutogradEngine, labelled
from fewfire.engines.dense import DenseEngine, watched
from fewfire.engines.optimizers import Adam
from fewfire.kernels import Kernels, NativeKernels, ReferenceKernels, native_missing
from fewfire.kernels.interface import AdamStep, Loss, Outcome, Weights
from fewfire.networks import Linear, LinearDecoder, LinearEncoder
from fewfire.terms import L1, MSE, AuxK, L0Penalty, MatryoshkaMSE

__all__ = ["FusedEngine", "NativeEngine", "SparseEngine"]

NAMES = ("encoder.W_enc", "encoder.b_enc", "decoder.W_dec", "decoder.b_dec")
THRESHOLD = "activation.threshold"
DOUBTFUL = 1e18
"""a gradient beyond this may have a square that is not finite: then its norm is computed, and decides"""
FLOAT32_MAX = torch.finfo(torch.float32).max
HINT_ROWS = 64
"""rows that stand for a batch where only the work depends on what they say"""
FEWEST_WEIGHTS = 1 << 15
"""of an encoder, below which autograd's few large operations beat many small ones"""
FEW_DEAD = 8
"""times as many dead latents as AuxK takes of each row; beyond, codes of them are worth their while"""
SMALL_PRODUCT = 1 << 24
"""multiplications, below which the calls around a product take longer than it"""
CROWDED = 0.2
"""share of latents that fire, beyond which codes are not worth their while"""


class SparseEngine:
    """What ``AutogradEngine`` does, on codes. Steps that are not finite, or where no error counts, are left to it."""

    name: ClassVar[str]
    make_kernels: ClassVar[Callable[[], Kernels]]

    def __init__(self, job: Job) -> None:
        self.model = job.model
        self.terms = labelled(job.terms)
        self.general = (AutogradEngine if DenseEngine.refuses(job) else DenseEngine)(job)
        self.optimizer: Adam = self.general.optimizer  # type: ignore[assignment]  # refuses() has seen to it
        self.clip_norm = job.optimizer.clip_norm
        self.kernels = type(self).make_kernels()
        self.hint: float | None = None
        """what latents had to exceed at the last step; no result depends on it"""
        parameters = dict(job.model.named_parameters())
        W_enc, b_enc, W_dec, b_dec = (parameters[name].detach() for name in NAMES)
        self.weights = Weights(W_enc, b_enc, W_dec, b_dec, job.model.decoder.unit_norm)
        moments = self.optimizer.moments
        self.average = tuple(moments["exp_avg"][n] for n in NAMES)
        self.square = tuple(moments["exp_avg_sq"][n] for n in NAMES)
        self.threshold = parameters[THRESHOLD].detach() if THRESHOLD in parameters else None
        self.threshold_gradient = None if self.threshold is None else torch.zeros_like(self.threshold)

    @classmethod
    def refuses(cls, job: Job) -> str | None:
        return _refused_model(job) or _refused_objective(job)

    @torch.no_grad()
    def step(self, batch: Batch, state: TrainState) -> StepReport:
        x_in, x = batch.x_in.flatten(1).contiguous(), batch.x.flatten(1).contiguous()
        if self._unusual(x_in):
            return self.general.step(batch, state)
        self.kernels.pack(self.weights.W_enc, self.weights.b_enc)
        lowest = self._encode(x_in)
        loss = self._loss(len(x))
        outcome = self.kernels.reconstruct(self.weights, x_in, x, loss)
        revival, largest = self._revive(outcome, state, x_in, x)
        values = self._values(outcome, revival, len(x))
        total = sum(self.terms[label].weight * value for label, value in values.items())
        factor = self._factor(largest) if abs(total) <= FLOAT32_MAX else None
        if factor is None:
            return self.general.step(batch, state)  # finds the rows, and changes nothing
        self._move(factor, state.lr)
        if lowest is not None:
            self.model.activation.learn_threshold(torch.tensor(lowest))
        if self.threshold is not None:
            self.threshold.clamp_(min=0)
        said = {"loss": total, **values, "l0": outcome.active / len(x)}
        return StepReport(dict(zip(said, torch.tensor(list(said.values())).unbind(), strict=True)), outcome.fired)

    def _unusual(self, x_in: Tensor) -> bool:
        """Whether this step is one for the general engine: by a schedule, by thresholds below 0, or for speed."""
        if any(term.intact != 1 for term in self.terms.values() if type(term) is MSE) or self._fit().weight == 0:
            return True
        if self.threshold is not None and not float(self.threshold.min()) >= 0:  # NaN neither
            return True
        return type(self.model.activation) is ReLU and self._crowded(x_in)

    # ------------------------------------------------------------------------------ codes

    def _encode(self, x_in: Tensor) -> float | None:
        """Leave the codes of rows (B, D) in the kernels; of BatchTopK, say what they had to exceed."""
        activation, n_latents = self.model.activation, self.model.n_latents
        if self.threshold is not None:  # those in the window below learn as well
            self.kernels.above(x_in, self.threshold - float(activation.width) / 2)
            return None
        if type(activation) is ReLU:
            self.kernels.above(x_in, torch.zeros(n_latents))
            return None
        if type(activation) is TopK:
            self.kernels.largest(x_in, activation.kept(n_latents, inference=False))
            return None
        return self._encode_batch(x_in, activation.kept(len(x_in), n_latents))

    def _encode_batch(self, x_in: Tensor, n_kept: int) -> float:
        """The n_kept largest of a batch: of those above a guess, unless it was too high."""
        guess = self._guess(x_in, n_kept) if self.hint is None else 0.9 * self.hint
        lowest = None
        for attempt in dict.fromkeys((guess, guess / 2, 0.0)):
            self.kernels.above(x_in, torch.full((self.model.n_latents,), attempt))
            lowest = self.kernels.keep(n_kept)
            if lowest is not None:
                break
        self.hint = lowest
        return lowest or 0.0  # None: all that are above 0 fire

    def _guess(self, x_in: Tensor, n_kept: int) -> float:
        """From some rows: a number that somewhat more latents exceed than shall fire."""
        z = self._some_pre_acts(x_in).flatten()
        wanted = min(len(z), int(1.2 * n_kept * len(z) / (len(x_in) * self.model.n_latents)) + 1)
        return max(0.0, float(z.kthvalue(len(z) - wanted + 1).values))

    def _crowded(self, x_in: Tensor) -> bool:
        """Whether so many rectified units fire that products of whole matrices are faster.

        Told from the step's own rows and weights, never from the step before: a resumed run must decide alike.
        """
        return float((self._some_pre_acts(x_in) > 0).float().mean()) > CROWDED

    def _some_pre_acts(self, x_in: Tensor) -> Tensor:
        return torch.addmm(self.weights.b_enc, x_in[:HINT_ROWS], self.weights.W_enc.T)

    # ------------------------------------------------------------------------------ loss

    def _fit(self) -> MSE | MatryoshkaMSE:
        """The term that says how far reconstructions are off."""
        return next(term for term in self.terms.values() if isinstance(term, MSE | MatryoshkaMSE))

    def _loss(self, n_rows: int) -> Loss:
        """What the terms ask for, as slopes per row and entry."""
        fit = self._fit()
        n_latents = self.model.n_latents
        prefixes = fit.sizes(n_latents) if isinstance(fit, MatryoshkaMSE) else [n_latents]
        slope = 2 * fit.weight / (n_rows * len(prefixes))
        weight = {type(term): term.weight / n_rows for term in self.terms.values()}
        return Loss(
            tuple(prefixes),
            (slope,) * len(prefixes),
            l1=weight.get(L1, 0.0),
            threshold=self.threshold,
            width=1.0 if self.threshold is None else float(self.model.activation.width),
            step_slope=weight.get(L0Penalty, 0.0),
        )

    def _revive(self, outcome: Outcome, state: TrainState, x_in: Tensor, x: Tensor) -> tuple[float, float]:
        """(what AuxK leaves over, no entry of a gradient is larger)."""
        term = next((term for term in self.terms.values() if type(term) is AuxK), None)
        if term is None or not state.any_dead:
            return 0.0, outcome.largest
        dead = state.dead.nonzero().squeeze(1).to(torch.int32)
        k = min(term.k_aux or max(1, x.shape[1] // 2), len(dead))
        slope = 2 * term.weight / len(x)
        if len(dead) > FEW_DEAD * k or x_in.numel() * len(dead) < SMALL_PRODUCT:
            return self.kernels.revive(dead, k, slope)
        error, norm = self._revive_few(dead, k, slope, x_in)
        return error, outcome.largest + norm

    def _revive_few(self, dead: Tensor, k: int, slope: float, x_in: Tensor) -> tuple[float, float]:
        """AuxK by whole matrices: most of the dead take part in every row. (squared error, the gradient's norm)."""
        product = self.kernels.product
        W_enc, b_enc, W_dec = (tensor[dead.long()] for tensor in self.weights[:3])
        z = product(x_in, W_enc).add_(b_enc)
        if k < len(dead):
            top = z.topk(k, sorted=False)
            z = torch.zeros_like(z).scatter_(1, top.indices, top.values)
        value = z.relu_()
        off = product(value, W_dec.T.contiguous()).sub_(self.kernels.left_over())
        error = float(torch.linalg.vector_norm(off, dtype=torch.float64)) ** 2
        off *= slope
        gradient = product(off, W_dec).mul_(value > 0)
        across = gradient.T.contiguous()
        to_W_enc = product(across, x_in.T.contiguous())
        to_W_dec = product(value.T.contiguous(), off.T.contiguous())
        to_b_enc = across.sum(1)
        self.kernels.join(dead, to_W_enc, to_b_enc, to_W_dec)
        return error, sum(float(part.norm()) for part in (to_W_enc, to_b_enc, to_W_dec))

    def _values(self, outcome: Outcome, revival: float, n_rows: int) -> dict[str, float]:
        """Every term before its weight, by its label."""
        values = {
            MSE: outcome.errors[-1] / n_rows,
            MatryoshkaMSE: sum(outcome.errors) / (n_rows * len(outcome.errors)),
            AuxK: revival / n_rows,
            L1: outcome.total / n_rows,
            L0Penalty: outcome.active / n_rows,
        }
        return {label: values[type(term)] for label, term in self.terms.items()}

    # ------------------------------------------------------------------------------ the move

    def _factor(self, largest: float) -> float | None:
        """What the gradient is scaled by; None: it is not finite."""
        if not largest < math.inf:  # a row or a weight that is not finite; no gradient may have come of it
            return None
        if self.clip_norm is None and largest < DOUBTFUL:
            return 1.0
        norm = self.kernels.norm()
        if not norm * norm <= FLOAT32_MAX:
            return None
        return 1.0 if self.clip_norm is None or norm <= self.clip_norm else self.clip_norm / norm

    def _move(self, factor: float, lr: float) -> None:
        adam = self.optimizer
        adam.count(NAMES)
        steps = tuple(float(adam.moments["step"][name]) for name in NAMES)
        numbers = AdamStep(self.average, self.square, steps, lr, *adam.betas, adam.eps)
        self.kernels.update(numbers, factor, self.threshold_gradient)
        if self.threshold_gradient is not None:
            adam.move({THRESHOLD: self.threshold_gradient}, lr)

    def state_dict(self) -> dict[str, Tensor]:
        return self.optimizer.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_state_dict(tensors)


class NativeEngine(SparseEngine):
    """With compiled kernels."""

    name = "native"
    make_kernels = NativeKernels

    @property
    def said(self) -> str:
        """The name, and the instructions used."""
        return f"{self.name} {self.kernels.isa}"  # type: ignore[attr-defined]

    @classmethod
    def refuses(cls, job: Job) -> str | None:
        return native_missing() or super().refuses(job)


class FusedEngine(SparseEngine):
    """With kernels in plain torch."""

    name = "fused"
    make_kernels = ReferenceKernels

    @classmethod
    def too_slow(cls, job: Job) -> str | None:
        """Why another engine would be faster, though this one can do the job; asked where nobody chose."""
        few = job.model.n_latents * math.prod(job.model.input_shape) < FEWEST_WEIGHTS
        return f"only encoders of {FEWEST_WEIGHTS:,} weights or more" if few else None


def _refused_model(job: Job) -> str | None:
    """Types are compared exactly: a subclass may have overridden anything."""
    model = job.model
    if type(model.network) is not Linear or model.network.output != "identity":
        return "only linear networks"
    if type(model.encoder) is not LinearEncoder or type(model.decoder) is not LinearDecoder:
        return "only linear networks whose weights are not tied"
    if type(model.activation) not in (TopK, BatchTopK, JumpReLU, ReLU):
        return "only topk, batchtopk, jumprelu and relu"
    parameters = dict(model.named_parameters())
    known = {*NAMES, THRESHOLD} if type(model.activation) is JumpReLU else {*NAMES}
    if set(parameters) != known or not all(p.requires_grad and p.is_contiguous() for p in parameters.values()):
        return "only weights, biases and thresholds, all of them learned"
    if any(p.dtype != torch.float32 or p.device.type != "cpu" for p in parameters.values()):
        return "only float32 on the CPU"
    if watched(model):
        return "only models without hooks or replaced methods"
    return None


def _refused_objective(job: Job) -> str | None:
    kinds = [type(term) for term in job.terms]
    penalties = {L1, L0Penalty} if type(job.model.activation) is JumpReLU else {L1}
    if job.optimizer.name != "adam":
        return "only adam"
    if job.dtype != "float32":
        return "only float32"
    if sum(kind in (MSE, MatryoshkaMSE) for kind in kinds) != 1 or len(set(kinds)) != len(kinds):
        return "only with one of mse and matryoshka_mse, and one term of a kind"
    if any(kind not in {MSE, MatryoshkaMSE, AuxK} | penalties for kind in kinds):
        return f"only the terms mse, matryoshka_mse, auxk and {', '.join(sorted(p.name for p in penalties))}"
    if AuxK in kinds and type(job.model.activation) is ReLU:  # whose dead are below 0: their gradient passes straight
        return "only relu without auxk"
    if any(term.by_decoder_norm for term in job.terms if type(term) is L1):
        return "only l1 without by_decoder_norm"
    if any(term.target is not None for term in job.terms if type(term) is L0Penalty):
        return "only l0_penalty without target"
    return None
