"""Gradients are right: finite differences for what is smooth, an independent formula for what is straight-through.

Parametrised over the registries: a new activation or term is covered by existing. A straight-through activation
must bring its formula into STRAIGHT_THROUGH, or the last test fails.
"""

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import ForwardOutput, TrainState
from fewfire.preprocess import Preprocess
from fewfire.terms import AuxK, KLSparsity, L0Penalty, Term

ours = {
    family: {n: m for n, m in family.registry.items() if m.__module__.startswith("fewfire")}
    for family in (Activation, Term)
}


def jumprelu(parameters, z, grad):
    """Rajamanoharan et al. 2024, "Jumping ahead", equations 11 and 12; the window is half of the first threshold."""
    threshold, width = parameters["threshold"], JUMP / 2
    window = np.abs(z - threshold) < width / 2
    return {"pre_acts": grad * (z > threshold), "threshold": (grad * -(threshold / width) * window).sum(axis=0)}


def gated(parameters, z, grad):
    """The gate is a constant: only the magnitude behind an open one has a slope."""
    scale = np.exp(parameters["r_mag"])
    through = grad * (z > 0) * (scale * z + parameters["b_mag"] > 0)
    return {
        "pre_acts": through * scale,
        "r_mag": (through * scale * z).sum(axis=0),
        "b_mag": through.sum(axis=0),
    }


JUMP = 0.5
STRAIGHT_THROUGH = {"jumprelu": (jumprelu, {"threshold": JUMP}), "gated": (gated, {})}
"""activation name -> f(parameters, pre_acts, grad) -> gradients at pre_acts and parameters, in numpy; settings"""


def directional_error(f, inputs, seed, eps=1e-6):
    """|finite difference - autograd| / scale along a random direction; central differences, float64."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in inputs]
    scale = sum(float(d.square().sum()) for d in directions) ** 0.5
    directions = [d / scale for d in directions]
    grads = torch.autograd.grad(f(), inputs, allow_unused=True)
    exact = sum(float((g * d).sum()) for g, d in zip(grads, directions, strict=True) if g is not None)

    def moved(t):
        with torch.no_grad():
            for tensor, d in zip(inputs, directions, strict=True):
                tensor += t * d
            value = float(f().detach())
            for tensor, d in zip(inputs, directions, strict=True):
                tensor -= t * d
        return value

    # Richardson: the error of order eps^2 cancels, so a larger step keeps more digits
    step = eps * 100
    coarse = (moved(step) - moved(-step)) / (2 * step)
    fine = (moved(step / 2) - moved(-step / 2)) / step
    return abs((4 * fine - coarse) / 3 - exact) / max(abs(exact), 1e-3)


def away_from_kinks(pre_acts, gap=1e-2):
    """Push values off zero and apart from each other, so that no small step crosses a kink or changes an order."""
    flat = pre_acts.flatten()
    order = flat.argsort()
    spread = torch.linspace(-2, 2, flat.numel(), dtype=flat.dtype)
    out = torch.empty_like(flat)
    out[order] = torch.where(spread.abs() < gap, torch.full_like(spread, gap), spread)
    return out.view_as(pre_acts)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [n for n, a in ours[Activation].items() if a.smooth])
def test_smooth_activation(name, seed):
    activation = ours[Activation][name]()
    activation.build(16)
    activation.double()
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(6, 16 * activation.n_pre, generator=generator, dtype=torch.float64)
    pre = away_from_kinks(pre).requires_grad_()
    weights = torch.randn(6, 16, generator=generator, dtype=torch.float64)
    inputs = [pre, *activation.parameters()]
    assert directional_error(lambda: (activation(pre) * weights).sum(), inputs, seed) < 1e-7


def model_for(term, seed):
    """The first activation and output that give what the term needs: those without a straight-through gradient first.

    AuxK passes a closed rectifier's gradient straight through; ``test_auxk_reaches_rectified_latents`` has the formula.
    """
    straight = {name: not member.smooth or member.dead_below_zero for name, member in ours[Activation].items()}
    for activation in sorted(straight, key=straight.__getitem__):
        for output in ("identity",) if ours[Activation][activation].needs else ("identity", "sigmoid"):
            model = Autoencoder(5, 8, activation, network={"name": "linear", "output": output}, seed=seed)
            if term.needs <= model.gives:
                return model.double()
    raise AssertionError(f"nothing gives {set(term.needs)}")


COUNTED = {"l0_penalty"}
"""terms whose value has no slope: they are compared with a formula"""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(set(ours[Term]) - COUNTED))
def test_term(name, seed):
    """Through the whole model, with respect to every parameter; of the gates, to those of the encoder alone."""
    term = ours[Term][name]()
    model = model_for(term, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    state = TrainState(1, 1, torch.full((8,), 10**9), 1e-3)  # every latent dead: AuxK is live
    learning = model.encoder if name == "gated_aux" else model  # the decoder is a constant to it
    parameters = [p for p in learning.parameters() if p.requires_grad]
    residual = {}

    def value():
        out = model(x, state=state)
        # AuxK holds the residual constant; finite differences must hold the same one
        frozen = residual.setdefault("recon", out.recon.detach().clone()) if name == "auxk" else out.recon
        return term(model, out._replace(recon=frozen), state)

    assert directional_error(value, parameters, seed) < 1e-7
    assert float(value().detach()) > 0


# ------------------------------------------------------------------------------------------------------- KL


def kl_with_50_digits(z, rho):
    with mpmath.workdps(50):
        total = mpmath.mpf(0)
        r = mpmath.mpf(rho)
        for column in z.T:
            logistic = [1 / (1 + mpmath.exp(-mpmath.mpf(float(v)))) for v in column]
            one_minus = [1 / (1 + mpmath.exp(mpmath.mpf(float(v)))) for v in column]
            hat, rest = mpmath.fsum(logistic) / len(column), mpmath.fsum(one_minus) / len(column)
            total += r * mpmath.log(r / hat) + (1 - r) * mpmath.log((1 - r) / rest)
        return total


def kl_of(z, rho):
    model = Autoencoder(1, z.shape[1], "sigmoid")
    z = z.clone().requires_grad_()
    out = model(torch.zeros(len(z), 1))._replace(pre_acts=z)
    value = KLSparsity(rho=rho)(model, out)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient


@pytest.mark.parametrize("rho", [1e-4, 0.01, 0.05, 0.5])
@pytest.mark.parametrize("scale", [0.1, 1, 30, 300, 1e4])
@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_kl_equals_a_50_digit_reference(rho, scale, shift):
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(20, 3, generator=generator, dtype=torch.float64) * scale / 3 + shift * scale
    value, _ = kl_of(z, rho)
    expected = kl_with_50_digits(z.numpy(), rho)
    # near its minimum of 0 the value is a difference of logarithms: absolute there, relative elsewhere
    assert abs(float(mpmath.mpf(float(value)) - expected)) < 1e-12 * max(float(expected), 1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("z", [-1e4, -90.0, -40.0, 0.0, 40.0, 90.0, 1e4])
def test_kl_is_finite_and_alive_at_saturation(z, dtype):
    value, gradient = kl_of(torch.full((8, 2), z, dtype=dtype), rho=0.05)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    # a unit that is always on is pushed down, one that is always off is pushed up
    assert (gradient > 0).all() if z >= 0 else (gradient < 0).all()
    assert float(gradient.abs().sum()) > 0.04


def test_kl_is_zero_where_the_mean_is_rho_and_positive_elsewhere():
    logit = float(np.log(0.05 / 0.95))
    at, _ = kl_of(torch.full((8, 2), logit, dtype=torch.float64), rho=0.05)
    off, _ = kl_of(torch.full((8, 2), logit + 0.1, dtype=torch.float64), rho=0.05)
    assert abs(float(at)) < 1e-14
    assert float(off) > 1e-4


def test_the_mean_is_over_the_batch_first():
    """Half the rows on, half off, is a mean of one half: not the sum of each row's own penalty."""
    z = torch.tensor([[5.0], [-5.0]], dtype=torch.float64)
    value, _ = kl_of(z, rho=0.5)
    assert abs(float(value)) < 1e-12


# ------------------------------------------------------------------------------------------ straight-through


def random(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def straight_through(name):
    """The activation in float64, each latent with values of its own, and its formula."""
    formula, settings = STRAIGHT_THROUGH[name]
    activation = ours[Activation][name](**settings)
    activation.build(16)
    activation.double()
    with torch.no_grad():
        for i, p in enumerate(activation.parameters()):
            p.add_(0.1 * random(*p.shape, seed=10 + i))
    return activation, formula, {n: p.detach().numpy() for n, p in activation.named_parameters()}


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_straight_through_activation(name):
    """At the pre-activations and at every parameter."""
    activation, formula, parameters = straight_through(name)
    pre, grad = random(64, 16, seed=0).requires_grad_(), random(64, 16, seed=1)
    inputs = {"pre_acts": pre, **dict(activation.named_parameters())}
    found = torch.autograd.grad(activation(pre), list(inputs.values()), grad)
    expected = formula(parameters, pre.detach().numpy(), grad.numpy())
    assert set(expected) == set(inputs)
    for key, gradient in zip(inputs, found, strict=True):
        assert np.abs(expected[key]).sum() > 0
        assert np.abs(gradient.numpy() - expected[key]).max() < 1e-12, key


@pytest.mark.parametrize("target", [None, 3.0])
def test_the_number_of_latents_has_a_gradient_for_thresholds_alone(target):
    """d step / d threshold = -K / bandwidth ("Jumping ahead", equation 12), through the mean over rows."""
    activation, _, parameters = straight_through("jumprelu")
    z = random(64, 16, seed=0).requires_grad_()
    model = SimpleNamespace(activation=activation)
    term = L0Penalty(target=target)
    value = term(model, ForwardOutput(z, z, z, z, z, z))
    at_z, at_threshold = torch.autograd.grad(value, [z, activation.threshold], allow_unused=True)
    assert at_z is None
    window = np.abs(z.detach().numpy() - parameters["threshold"]) < JUMP / 4
    n_active = (z.detach().numpy() > parameters["threshold"]).sum() / 64
    outer = 1.0 if target is None else 2 * (n_active / target - 1) / target
    expected = -outer * window.sum(axis=0) / (JUMP / 2) / 64
    assert np.abs(at_threshold.numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("activation", ["relu", "gated"])
def test_auxk_reaches_rectified_latents(activation):
    """Dead ones are below 0 on every row. Their value is 0, and their gradient that of the error at 0."""
    model, x = Autoencoder(5, 8, activation, dtype=torch.float64), random(7, 5, seed=0)
    dead = [1, 4, 6]
    with torch.no_grad():
        model.encoder.b_enc[dead] = -20
    since = torch.zeros(8, dtype=torch.int64)
    since[dead] = 10**9
    state = TrainState(1, 1, since, 1e-3)
    out = model(x, state=state)
    value = AuxK(k_aux=2)(model, out, state)
    (gradient,) = torch.autograd.grad(value, out.pre_acts)
    residual = (x - out.recon).detach().numpy()
    assert float(value.detach()) == pytest.approx((residual**2).sum() / 7)
    expected = -2 * residual @ model.decoder.W_dec.detach().numpy().T / 7
    z = out.pre_acts.detach().numpy()
    for row in range(7):
        chosen = sorted(dead, key=lambda j: -z[row, j])[:2]
        others = sorted(set(range(8)) - set(chosen))
        assert np.abs(gradient[row, chosen].numpy() - expected[row, chosen]).max() < 1e-12
        assert (gradient[row, others] == 0).all()


def test_every_straight_through_activation_has_its_formula():
    assert {n for n, a in ours[Activation].items() if not a.smooth} == set(STRAIGHT_THROUGH)


def test_every_preprocess_is_here_to_be_seen():
    """The registry itself works: the names that configuration files use."""
    assert {"standardize", "minmax", "whiten", "row_mean", "clip_scale", "center"} <= set(Preprocess.registry)
