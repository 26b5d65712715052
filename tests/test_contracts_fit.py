"""Proof that the contracts hold what will be built on them: nine mechanisms in rough form, through every station.

Each case is written here as a newcomer would write it: one class, no edit elsewhere. It must train through Trainer
with a falling loss, send gradient to the encoder, survive save and load and resume bit for bit, and encode a row
alone as in a batch. The rough forms are no product; the real ones come with tests of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fewfire as ff
from fewfire import rng
from fewfire.activations import Activation
from fewfire.contracts import Engine, Job, Optimizer, StepReport, TrainState
from fewfire.engines import AutogradEngine
from fewfire.networks import Decoder, Network, Pair
from fewfire.terms import Term

# Sixty steps are no training: whether a penalty had time to work is not the question here.
pytestmark = pytest.mark.filterwarnings("ignore::fewfire.SparsityWarning")

# ------------------------------------------------------------------------------------------- the rough forms


class RoughGated(Activation):
    """One path decides, the other measures; the private term trains the deciding one."""

    gives = frozenset({"scores"})
    unit_norm = True

    def build(self, n_latents):
        self.r_mag = nn.Parameter(torch.zeros(n_latents))
        self.b_mag = nn.Parameter(torch.zeros(n_latents))

    def forward(self, pre_acts, state=None):
        return (pre_acts > 0) * (self.r_mag.exp() * pre_acts + self.b_mag).relu()

    def default_terms(self):
        return [RoughGate()]


class RoughGate(Term):
    """L1 on the gate, and the reconstruction from the gate alone through a decoder held constant."""

    needs = frozenset({"scores", "linear_decoder"})

    def __call__(self, model, out, state=None):
        gate = out.pre_acts.relu()
        recon = gate @ model.decoder.W_dec.detach() + model.decoder.b_dec.detach()
        return F.mse_loss(recon, out.x, reduction="sum") / len(gate) + gate.sum() / len(gate)


class RoughBatchTopK(Activation):
    """k * B over the whole batch; at inference a threshold that training measured."""

    gives = frozenset({"scores"})

    def __init__(self, k=3):
        super().__init__()
        self.k = k

    def build(self, n_latents):
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, pre_acts, state=None):
        positive = pre_acts.relu()
        if state is None:
            return positive * (positive > self.threshold)
        kth = positive.flatten().topk(self.k * len(positive)).values[-1].detach()
        return positive * (positive >= kth)

    def commit(self, out, state):
        lowest = out.latents[out.latents > 0].min()
        self.threshold.lerp_(lowest, 0.1)


class RoughJumpReLU(Activation):
    smooth = False

    def build(self, n_latents):
        self.threshold = nn.Parameter(torch.full((n_latents,), 0.1))

    def forward(self, pre_acts, state=None):
        return _Jump.apply(pre_acts, self.threshold)


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta):
        ctx.save_for_backward(z, theta)
        return z * (z > theta)

    @staticmethod
    def backward(ctx, g):
        z, theta = ctx.saved_tensors
        window = ((z - theta).abs() < 0.25) / 0.5
        return g * (z > theta), -(g * theta * window).sum(0)


class RoughGaussian(Activation):
    """mean and log variance per latent; sampled in training, the mean at inference."""

    gives = frozenset({"mean_logvar", "logits"})
    n_pre = 2

    def forward(self, pre_acts, state=None):
        mean, logvar = self.mean_logvar(pre_acts)
        if state is None:
            return mean
        noise = torch.randn(mean.shape, generator=rng.generator(state.seed, "latents", state.step), dtype=mean.dtype)
        return mean + noise * (logvar / 2).exp()

    def mean_logvar(self, pre_acts):
        return pre_acts.chunk(2, dim=1)

    def logits(self, pre_acts):
        return self.mean_logvar(pre_acts)[0]

    def active(self, latents):
        return torch.ones_like(latents, dtype=torch.bool)


class RoughKLNormal(Term):
    needs = frozenset({"mean_logvar"})

    def __call__(self, model, out, state=None):
        mean, logvar = model.activation.mean_logvar(out.pre_acts)
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / len(mean)


class RoughPursuit(Activation):
    """Several passes: each takes the atom that the residual is most aligned with."""

    def __init__(self, passes=3):
        super().__init__()
        self.passes = passes

    def encode(self, x_in, model, state=None):
        dictionary = model.decoder.W_dec
        pre_acts = model.encoder(x_in)
        residual, latents = x_in - model.decoder.b_dec, torch.zeros_like(pre_acts)
        for _ in range(self.passes):
            scores = residual @ dictionary.T + 0.1 * pre_acts
            best = scores.relu().max(1)
            latents = latents.scatter_add(1, best.indices[:, None], best.values[:, None])
            residual = residual - best.values[:, None] * dictionary[best.indices]
        return pre_acts, latents


class RoughMaps(Activation):
    """Spatial winner-take-all: each map keeps its largest position."""

    def forward(self, pre_acts, state=None):
        positive = pre_acts.relu()
        return positive * (positive == positive.amax((2, 3), keepdim=True))


class RoughConv(Network):
    output = "identity"

    def build(self, sizes, *, unit_norm, generator):
        # skip_init: the layers would draw first weights from the global generator
        encoder = nn.utils.skip_init(nn.Conv2d, 1, sizes.n_latents, 3, padding=1)
        decoder = ConvDecoder(sizes.n_latents)
        for weight in (encoder.weight, decoder.conv.weight):
            nn.init.normal_(weight, std=0.1, generator=generator)
        for layer in (encoder, decoder.conv):
            nn.init.zeros_(layer.bias)
        return Pair(encoder, decoder, (sizes.n_latents, *sizes.input_shape[1:]))


class ConvDecoder(Decoder):
    def __init__(self, maps):
        super().__init__()
        self.conv = nn.utils.skip_init(nn.ConvTranspose2d, maps, 1, 3, padding=1)

    def forward(self, latents):
        return self.conv(latents)


class WrappingEngine:
    """A second engine that only wraps the first."""

    name = "wrapping"

    def __init__(self, job):
        self.inner = AutogradEngine(job)
        self.steps_seen = 0

    @classmethod
    def refuses(cls, job):
        return None if type(job.model.activation) is ff.TopK else "only TopK, exactly"

    def step(self, batch, state) -> StepReport:
        self.steps_seen += 1
        return self.inner.step(batch, state)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, tensors):
        self.inner.load_state_dict(tensors)


# ------------------------------------------------------------------------------------------------ the cases


@dataclass
class Case:
    activation: Any
    terms: Any = None
    row_shape: tuple[int, ...] = (12,)
    target_shape: tuple[int, ...] | None = None
    network: Any = "linear"
    n_latents: int = 24
    train: dict[str, Any] = field(default_factory=dict)

    def source(self):
        data = np.random.default_rng(0)
        width, n = math.prod(self.row_shape), 160
        atoms = data.normal(size=(30, width))
        codes = data.exponential(size=(n, 30)) * (data.random((n, 30)) < 0.1)
        x = (codes @ atoms).astype(np.float32)
        target = None
        if self.target_shape:
            mixed = x @ data.normal(size=(width, math.prod(self.target_shape))) / width**0.5
            target = mixed.astype(np.float32).reshape(n, *self.target_shape)
        return ff.ArraySource(x.reshape(n, *self.row_shape), target)

    def model(self):
        return ff.Autoencoder(
            self.row_shape, self.n_latents, self.activation, network=self.network, d_out=self.target_shape
        )

    def trainer(self, folder=None, steps=60, **changes):
        terms = None if self.terms is None else [Term.from_config(t) for t in self.terms]
        config = ff.TrainConfig(steps=steps, batch_size=32, learning_rate=3e-3, **{**self.train, **changes})
        return ff.Trainer(self.model(), self.source(), terms, config, folder=folder, progress=False)


CASES = {
    # dead after one batch: the auxiliary term is live from the second step on
    "topk_auxk": Case("topk", terms=["mse", "auxk"], n_latents=96, train={"dead_after": 32}),
    "gated": Case("roughgated"),
    "batchtopk": Case("roughbatchtopk"),
    "jumprelu": Case("roughjumprelu"),
    "conv_wta": Case("roughmaps", row_shape=(1, 6, 5), network="roughconv", n_latents=8),
    "transcoder": Case({"name": "topk", "k": 4}, target_shape=(7,)),
    "crosscoder": Case({"name": "topk", "k": 4}, row_shape=(2, 6)),
    "matching_pursuit": Case("roughpursuit", terms=["mse"]),
    "gaussian": Case("roughgaussian", terms=["mse", {"name": "roughklnormal", "weight": 1e-2}, "kl"]),
    "sigmoid_tied": Case("sigmoid", network={"name": "linear", "tied": True}),
}

cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def tensors_equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


@cases
def test_trains(case):
    trainer = case.trainer(steps=200)
    history = [record["loss"] for record in trainer.fit() if "loss" in record]
    assert all(map(math.isfinite, history))
    assert np.mean(history[-10:]) < 0.9 * np.mean(history[:10])


@cases
def test_gradient_reaches_the_encoder(case):
    trainer = case.trainer(steps=2)
    before = {n: p.detach().clone() for n, p in trainer.model.encoder.named_parameters()}
    trainer.fit()
    for name, parameter in trainer.model.encoder.named_parameters():
        assert not torch.equal(parameter, before[name]), name


@cases
def test_saved_and_loaded_bit_for_bit(case, tmp_path):
    trainer = case.trainer()
    trainer.fit()
    ff.save(trainer.model, tmp_path / "model")
    loaded = ff.load(tmp_path / "model")
    x = torch.as_tensor(next(case.source().batches(50)).x_in)
    assert tensors_equal(loaded.state_dict(), trainer.model.state_dict())
    assert torch.equal(loaded.encode(x), trainer.model.encode(x))
    assert torch.equal(loaded.reconstruct(x), trainer.model.reconstruct(x))
    assert loaded.config() == trainer.model.config()


def count_steps(trainer):
    steps, step = [], trainer.engine.step

    def counted(batch, state):
        steps.append(state.step)
        return step(batch, state)

    trainer.engine.step = counted
    return steps


@cases
def test_resumes_bit_for_bit(case, tmp_path):
    whole = case.trainer(tmp_path / "whole")
    whole.fit()

    class Killed(Exception):
        pass

    interrupted = case.trainer(tmp_path / "parts")
    step = interrupted._step

    def step_until(batch):
        if interrupted.state.step == 37:
            raise Killed
        return step(batch)

    interrupted._step = step_until
    with pytest.raises(Killed):
        interrupted.fit()
    resumed = case.trainer(tmp_path / "parts")
    steps = count_steps(resumed)
    resumed.fit(resume=True)
    assert len(steps) == 60 - 36, "it started again instead of going on"
    assert tensors_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert tensors_equal(resumed.engine.state_dict(), whole.engine.state_dict())
    assert torch.equal(resumed.state.since_fired, whole.state.since_fired)
    assert resumed.state.samples == whole.state.samples


@cases
def test_a_row_alone_is_the_row_in_a_batch(case):
    trainer = case.trainer()
    trainer.fit()
    x = torch.as_tensor(next(case.source().batches(150)).x_in)
    together = trainer.model.encode(x)
    for i in (0, 1, 63, 64, 149):
        assert torch.equal(trainer.model.encode(x[i : i + 1])[0], together[i])


@cases
def test_sparse_codes_decode_as_dense_ones(case):
    model = case.model()
    x = torch.as_tensor(next(case.source().batches(40)).x_in)
    dense, sparse = model.decode(model.encode(x)), model.decode(model.encode_sparse(x))
    assert dense.shape[1:] == model.target_shape
    assert torch.allclose(dense, sparse, atol=1e-6)


# -------------------------------------------------------------------------------------------- the particulars


def test_auxk_reaches_only_the_dead():
    model = ff.Autoencoder(12, 24, ff.TopK(k=2))
    x = torch.as_tensor(next(CASES["topk_auxk"].source().batches(64)).x_in)
    dead = torch.zeros(24, dtype=torch.bool)
    dead[5:20] = True
    state = TrainState(1, 64, torch.where(dead, 10**6, 0), 1e-3, dead_after=1000)
    ff.AuxK(k_aux=15)(model, model(x, state=state), state).backward()
    for weight in (model.encoder.W_enc, model.decoder.W_dec):
        assert (weight.grad[dead].abs().sum(1) > 0).all()
        assert (weight.grad[~dead] == 0).all()
    assert model.decoder.b_dec.grad is None, "the auxiliary reconstruction has no bias"


def test_batchtopk_rows_do_not_depend_on_their_neighbours():
    trainer = CASES["batchtopk"].trainer()
    trainer.fit()
    model = trainer.model
    assert model.activation.threshold > 0
    x = torch.as_tensor(next(CASES["batchtopk"].source().batches(100)).x_in)
    alone, loud = model.encode(x[:1]), model.encode(torch.cat([x[:1], 100 * x[1:]]))[:1]
    assert torch.equal(alone, loud)


def test_a_feature_map_counts_as_one_latent():
    trainer = CASES["conv_wta"].trainer()
    trainer.fit()
    assert trainer.model.latent_shape == (8, 6, 5)
    assert trainer.state.since_fired.shape == (8,)
    assert trainer.summary["n_latents"] == 8
    assert trainer.summary["l0"] < 8 * 30  # positions, of which there are 30 a map


def test_gaussian_latents_are_sampled_in_training_and_certain_afterwards():
    model = CASES["gaussian"].model()
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    state = TrainState(3, 0, torch.zeros(24, dtype=torch.int64), 1e-3)
    first, again = model(x, state=state).latents, model(x, state=state).latents
    state.step = 4
    later = model(x, state=state).latents
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(model(x).latents, model.activation.mean_logvar(model(x).pre_acts)[0])


def test_a_second_engine_fits_and_resumes_the_first_ones_checkpoint(monkeypatch, tmp_path):
    import fewfire.engines as engines

    monkeypatch.setattr(engines, "ENGINES", (WrappingEngine, AutogradEngine))
    job = Job(CASES["topk_auxk"].model(), (ff.MSE(),), Optimizer())
    assert isinstance(WrappingEngine(job), Engine)
    case = CASES["topk_auxk"]
    plain = case.trainer(tmp_path, engine="autograd")
    plain.fit()
    wrapped = case.trainer(tmp_path)
    assert wrapped.engine_reason.startswith("wrapping")
    wrapped.fit(resume=True)
    assert tensors_equal(plain.engine.state_dict(), wrapped.engine.state_dict())
    other, _ = engines.choose(Job(CASES["gated"].model(), (ff.MSE(),), Optimizer()))
    assert isinstance(other, AutogradEngine)
    with pytest.raises(ValueError, match="only TopK, exactly"):
        CASES["gated"].trainer(engine="wrapping")


def test_the_straight_through_gradient_is_its_formula():
    pre = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    theta = torch.full((6,), 0.1, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(40, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    got = torch.autograd.grad(_Jump.apply(pre, theta), (pre, theta), grad)
    z, g = pre.detach().numpy(), grad.numpy()
    assert np.abs(got[0].numpy() - g * (z > 0.1)).max() < 1e-12
    expected = -(0.1 / 0.5 * g * (np.abs(z - 0.1) < 0.25)).sum(0)
    assert np.abs(got[1].numpy() - expected).max() < 1e-12
