"""Gradients are right: finite differences for what is smooth, an independent formula for what is straight-through.

Parametrised over the registries: a new activation or term is covered by existing. A straight-through activation
must bring its formula into STRAIGHT_THROUGH, or the last test fails.
"""

import mpmath
import numpy as np
import pytest
import torch

from fewfire.activations import Activation
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import TrainState
from fewfire.preprocess import Preprocess
from fewfire.terms import KLSparsity, Term

ours = {
    family: {n: m for n, m in family.registry.items() if m.__module__.startswith("fewfire")}
    for family in (Activation, Term)
}

STRAIGHT_THROUGH: dict[str, object] = {}
"""activation name -> f(activation, pre_acts, grad) -> gradient at pre_acts, in numpy"""


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
    """The first activation and output of the registries that give what the term needs."""
    for activation in ours[Activation]:
        for output in ("identity", "sigmoid"):
            model = Autoencoder(5, 8, activation, network={"name": "linear", "output": output}, seed=seed)
            if term.needs <= model.gives:
                return model.double()
    raise AssertionError(f"nothing gives {set(term.needs)}")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ours[Term])
def test_term(name, seed):
    """Through the whole model, with respect to every parameter."""
    term = ours[Term][name]()
    model = model_for(term, seed)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    state = TrainState(1, 1, torch.full((8,), 10**9), 1e-3)  # every latent dead: AuxK is live
    parameters = [p for p in model.parameters() if p.requires_grad]
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


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
def test_straight_through_activation(name):
    activation = ours[Activation][name]()
    activation.build(16)
    activation.double()
    pre = torch.randn(64, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    grad = torch.randn(64, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (ours_grad,) = torch.autograd.grad(activation(pre), pre, grad)
    expected = STRAIGHT_THROUGH[name](activation, pre.detach().numpy(), grad.numpy())
    assert np.abs(ours_grad.numpy() - expected).max() < 1e-12


def test_every_straight_through_activation_has_its_formula():
    assert {n for n, a in ours[Activation].items() if not a.smooth} == set(STRAIGHT_THROUGH)


def test_every_preprocess_is_here_to_be_seen():
    """The registry itself works: the names that configuration files use."""
    assert {"standardize", "minmax", "whiten", "row_mean", "clip_scale", "center"} <= set(Preprocess.registry)
