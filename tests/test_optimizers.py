"""Adam against the paper in numpy, L-BFGS against scipy, and the line search against its own two conditions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.optimize
import torch

from fewfire.contracts import Optimizer
from fewfire.engines.optimizers import LBFGS, Adam, make_optimizer, strong_wolfe


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


# ------------------------------------------------------------------------------------------------- Adam


def numpy_adam(x, gradients, rates, betas, eps):
    """Kingma & Ba 2015, algorithm 1, as printed."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        x = x - rate * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return x


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-3), ((0.0, 0.99), 1e-8)])
def test_adam_is_the_papers(dtype, close, betas, eps):
    gradients = [random(4, 3, seed=s).numpy() for s in range(12)]
    rates = [0.1 * 0.8**s for s in range(12)]
    start = random(4, 3, seed=99)
    parameter = start.to(dtype, copy=True).requires_grad_()
    adam = Adam({"w": parameter}, betas, eps)
    for g, rate in zip(gradients, rates, strict=True):
        parameter.grad = torch.from_numpy(g).to(dtype)
        adam.step(rate, torch.zeros(()), lambda: torch.zeros(()))
    expected = numpy_adam(start.numpy(), gradients, rates, betas, eps)
    assert np.abs(parameter.detach().double().numpy() - expected).max() < close


def test_adam_state_round_trip_with_a_parameter_that_never_had_a_gradient():
    def make():
        return {"w": random(5, 3).requires_grad_(), "idle": random(2).requires_grad_()}

    def step(adam, parameters, seed):
        parameters["w"].grad = random(5, 3, seed=seed)
        adam.step(0.01, torch.zeros(()), lambda: torch.zeros(()))

    whole, parts = make(), make()
    adam, first = Adam(whole, (0.9, 0.999), 1e-8), Adam(parts, (0.9, 0.999), 1e-8)
    for s in range(6):
        step(adam, whole, s)
    for s in range(3):
        step(first, parts, s)
    saved = {name: t.clone() for name, t in first.state_dict().items()}
    assert {n for n, t in saved.items() if t.any()} == {"exp_avg.w", "exp_avg_sq.w", "step.w"}
    second = Adam(parts, (0.9, 0.999), 1e-8)
    second.load_state_dict(saved)
    for s in range(3, 6):
        step(second, parts, s)
    assert torch.equal(parts["w"], whole["w"])
    assert torch.equal(parts["idle"], make()["idle"])
    assert float(second.state_dict()["step.w"]) == 6
    assert float(saved["step.w"]) == 3, "the loaded tensors belong to the caller and must not move"


# ----------------------------------------------------------------------------------------------- L-BFGS


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x):
    scales = torch.logspace(0, 2, len(x), dtype=x.dtype)
    return 0.5 * (scales * x * x).sum() - x.sum()


def logistic(x):
    rows = random(80, 20, seed=5)
    labels = (rows[:, 0] + rows[:, 1] > 0).double() * 2 - 1
    return torch.nn.functional.softplus(-labels * (rows @ x)).mean() + 1e-3 * x @ x


def minimise(function, start, steps, dtype=torch.float64, rule=None, x=None):
    x = torch.tensor(start, dtype=dtype, requires_grad=True) if x is None else x
    rule = rule or LBFGS({"x": x})
    count, losses = 0, []

    def evaluate():
        nonlocal count
        count += 1
        x.grad = None
        loss = function(x)
        loss.backward()
        return loss.detach()

    for _ in range(steps):
        losses.append(float(evaluate()))
        rule.step(1.0, torch.tensor(losses[-1], dtype=dtype), evaluate)
    return x, rule, count, losses


@pytest.mark.parametrize(
    ("function", "start", "steps"),
    [
        (rosenbrock, [-1.2, 1.0], 60),
        (rosenbrock, [-1.2, 1.0] * 5, 120),
        (quadratic, [1.0] * 20, 60),
        (logistic, [0.0] * 20, 60),
    ],
    ids=["rosenbrock2", "rosenbrock10", "quadratic", "logistic"],
)
def test_lbfgs_finds_what_scipy_finds(function, start, steps):
    def with_gradient(x):
        x = torch.from_numpy(x).requires_grad_()
        loss = function(x)
        return float(loss.detach()), torch.autograd.grad(loss, x)[0].numpy()

    peer = scipy.optimize.minimize(
        with_gradient,
        np.array(start),
        jac=True,
        method="L-BFGS-B",
        options={"maxcor": 20, "ftol": 1e-16, "gtol": 1e-9, "maxiter": 1000},
    )
    x, _, count, losses = minimise(function, start, steps)
    assert losses[-1] <= peer.fun + 1e-11
    assert np.abs(x.detach().numpy() - peer.x).max() < 1e-5
    reached = next(i for i, loss in enumerate(losses) if loss <= peer.fun + 1e-8)
    assert reached <= 1.5 * peer.nit + 5, "more iterations than scipy needs"
    assert count <= 3 * steps + 25, "a good direction needs one evaluation in the line search, and one before it"


def test_lbfgs_never_goes_up():
    losses = minimise(rosenbrock, [-1.2, 1.0] * 5, 60)[3]
    assert all(after <= before for before, after in pairwise(losses))


def test_lbfgs_in_float32_gets_as_far_as_float32_can():
    x, _, _, losses = minimise(rosenbrock, [-1.2, 1.0] * 3, 120, torch.float32)
    assert losses[-1] < 1e-9
    assert (x.detach() - 1).abs().max() < 1e-4


def test_lbfgs_converged_stays_where_it_is():
    x, _, _, losses = minimise(quadratic, [1.0] * 5, 100, torch.float32)
    best = float(-(1 / torch.logspace(0, 2, 5)).sum() / 2)
    assert abs(losses[-1] - best) < 1e-6 * abs(best)
    assert torch.isfinite(x).all()


@pytest.mark.parametrize("n", [8, 7, 49, 131])  # of a length that is no multiple of a vector register, too
def test_lbfgs_state_round_trip(n):
    start = ([-1.2, 1.0] * n)[:n]
    whole, rule, _, _ = minimise(rosenbrock, start, 30)
    x, first, _, _ = minimise(rosenbrock, start, 13)
    assert len(first.moves) == 13
    saved = {name: t.clone() for name, t in first.state_dict().items()}
    second = minimise(rosenbrock, [0.5] * n, 9)[1]  # with a memory of its own, which loading must drop
    second.parameters = {"x": x}
    second.load_state_dict(saved)
    places = {v.untyped_storage().data_ptr() for v in (*second.moves, *second.bends)}
    assert len(places) == 26, "rows of one matrix lie in memory otherwise than vectors of their own, and may round so"
    minimise(rosenbrock, None, 17, rule=second, x=x)
    assert torch.equal(x, whole)
    assert all(torch.equal(a, b) for a, b in zip(second.moves, rule.moves, strict=True))
    assert len(rule.moves) == 20, "the history is limited"


def test_lbfgs_without_a_history_has_an_empty_state():
    x = torch.zeros(3, requires_grad=True)
    rule = LBFGS({"x": x})
    assert rule.state_dict() == {}
    other = minimise(quadratic, [1.0] * 3, 4)[1]
    other.load_state_dict({})
    assert other.state_dict() == {}


def test_lbfgs_with_a_rate_of_zero_stays():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    loss = quadratic(x)
    loss.backward()
    LBFGS({"x": x}).step(0.0, loss.detach(), lambda: pytest.fail("nothing to evaluate"))
    assert torch.equal(x.detach(), torch.ones(3, dtype=torch.float64))


def test_lbfgs_with_stale_curvature_starts_again_from_steepest_descent():
    x, rule, _, losses = minimise(quadratic, [3.0] * 4, 3)
    rule.bends = type(rule.bends)([-y for y in rule.bends], maxlen=20)  # uphill
    minimise(quadratic, None, 1, rule=rule, x=x)
    assert float(quadratic(x.detach())) < losses[-1]
    assert len(rule.moves) == 1


def test_lbfgs_drops_a_memory_that_leads_nowhere():
    """Otherwise the next step, and all that follow, would try the same useless direction."""
    x, rule, _, _ = minimise(quadratic, [3.0] * 4, 5)
    before = x.detach().clone()
    loss = quadratic(x)
    x.grad = torch.autograd.grad(loss, x)[0]
    rule.step(1.0, loss.detach(), lambda: torch.tensor(math.inf, dtype=torch.float64))
    assert torch.equal(x.detach(), before)
    assert not rule.moves


def test_make_optimizer():
    parameters = {"x": torch.zeros(3, requires_grad=True)}
    assert isinstance(make_optimizer(Optimizer("adam"), parameters), Adam)
    assert isinstance(make_optimizer(Optimizer("lbfgs"), parameters), LBFGS)


# ------------------------------------------------------------------------------------------ line search


def line(function, slope):
    return lambda t: (function(t), slope(t), torch.tensor([slope(t)], dtype=torch.float64))


LINES = {
    "parabola": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "far away": (lambda t: (t - 900) ** 2, lambda t: 2 * (t - 900)),
    "very near": (lambda t: 1e6 * (t - 1e-4) ** 2, lambda t: 2e6 * (t - 1e-4)),
    "wavy": (lambda t: -t + 0.9 * math.sin(8 * t) / 8, lambda t: -1 + 0.9 * math.cos(8 * t)),
    "more and thuente 1": (
        lambda t: -t / (t * t + 2),
        lambda t: (t * t - 2) / (t * t + 2) ** 2,
    ),
    "more and thuente 2": (
        lambda t: 1e3 * ((t + 0.004) ** 5 - 2 * (t + 0.004) ** 4),
        lambda t: 1e3 * (5 * (t + 0.004) ** 4 - 8 * (t + 0.004) ** 3),
    ),
    "wall": (
        lambda t: -t - 0.1 * math.log(2 - t) if t < 2 else math.nan,
        lambda t: -1 + 0.1 / (2 - t) if t < 2 else math.nan,
    ),
    "cliff": (
        lambda t: (t - 1) ** 2 if t < 2 else math.inf,
        lambda t: 2 * (t - 1) if t < 2 else math.inf,
    ),
    "slope is lost first": (lambda t: (t - 1) ** 2, lambda t: 2 * (t - 1) if t < 1.05 else math.nan),
}


@pytest.mark.parametrize("first", [1e-3, 0.3, 1.0, 7.0])
@pytest.mark.parametrize("name", sorted(set(LINES) - {"wavy"}))
def test_both_wolfe_conditions_hold(name, first):
    function, slope = LINES[name]
    value0, slope0 = function(0.0), slope(0.0)
    t, gradient = strong_wolfe(line(function, slope), first, value0, slope0, torch.tensor([slope0]))
    assert t > 0
    assert function(t) <= value0 + 1e-4 * t * slope0, "sufficient decrease"
    assert abs(slope(t)) <= 0.9 * abs(slope0), "curvature"
    assert float(gradient) == slope(t), "the gradient is that at the point returned"


def test_a_flat_place_is_not_enough():
    """At t = 1 the slope is 0, and the value has hardly fallen."""
    c = 1 + 1e-6
    function, slope = (lambda t: -t + 2 * t**2 - c * t**3 if t < 1.5 else 9.0), (lambda t: -1 + 4 * t - 3 * c * t**2)
    t, _ = strong_wolfe(line(function, slope), 1.0, 0.0, -1.0, torch.zeros(1))
    assert 0 < t < 1
    assert function(t) <= -1e-4 * t


def test_curvature_condition_on_a_function_with_many_minima():
    """It falls for ever, so any point with both conditions will do."""
    function, slope = LINES["wavy"]
    t, _ = strong_wolfe(line(function, slope), 0.5, 0.0, slope(0.0), torch.zeros(1))
    assert function(t) <= 1e-4 * t * slope(0.0)
    assert abs(slope(t)) <= 0.9 * abs(slope(0.0)) or t > 1e3


@pytest.mark.parametrize("value", [math.nan, math.inf, 5.0])
def test_nothing_better_found_means_staying(value):
    evaluations = []

    def along(t):
        evaluations.append(t)
        return value, -1.0, torch.tensor([-1.0])

    t, gradient = strong_wolfe(along, 1.0, 0.0, -1.0, torch.tensor([-1.0]))
    assert t == 0.0
    assert float(gradient) == -1.0
    assert 1 <= len(evaluations) <= 50


def test_noise_does_not_stop_the_search_on_a_plateau():
    """Values rounded to nothing, slopes exact: the slopes decide."""
    function, slope = (lambda t: 1000.0), (lambda t: 2e-6 * (t - 3))
    t, _ = strong_wolfe(line(function, slope), 1.0, 1000.0, slope(0.0), torch.zeros(1), noise=1e-3)
    assert t > 0
    assert abs(slope(t)) <= 0.9 * abs(slope(0.0))
