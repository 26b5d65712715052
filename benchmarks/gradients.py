"""Autograd against finite differences, for every registered term and activation, and KL against 50 digits.

    python benchmarks/gradients.py

**Gradients.** For each member of the two families, a float64 model that gives it what it needs, and a random
direction in the space of all parameters. The relative error is ``|finite difference - autograd| / |autograd|``, the
directional derivative by central differences of a step scaled to the parameters, twice, extrapolated to remove
the error of second order (Richardson); the largest of three seeds. "Away from kinks" means that no pre-activation
comes within reach of 0, and no two within reach of changing places among a row's largest, as far as the step moves
them; a draw where one does is redrawn. Members whose ``smooth`` is False have a formula for a gradient instead and are
not compared here.

**KL.** Value against 50 decimal digits of mpmath, from the same float64 logits, for means from 1e-300 to 1 - 1e-16 and
rho from 1e-4 to 0.5; and at logits of +-10,000, where the textbook form is infinite, its value and gradient.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from collections.abc import Callable
from typing import Any

import mpmath
import torch
from torch import Tensor

import fewfire as ff
from measure import print_table, print_title

GOAL_GRADIENT, GOAL_KL = 1e-7, 1e-12
B, D, L = 24, 10, 12


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    print_title("Directional derivatives, float64: central differences beside autograd")
    members = [*ff.Term.registry.values(), *ff.Activation.registry.values()]
    rows = [gradient_row(member) for member in members]
    print_table(["member", "model", "relative error", "goal", ""], rows)
    print_title("KL penalty of 100 rows of one unit: value beside 50 digits, gradient")
    print_table(
        ["logits", "rho", "value", "relative error", "|gradient|", "book, float32", "book, clamped", ""], kl_rows()
    )


# ---------------------------------------------------------------------------------------------- gradients


def gradient_row(member: type[Any]) -> list[str]:
    """One line of the table: the worst of three seeds."""
    if not getattr(member, "smooth", True):
        return [member.name, "", "straight-through", "", "not compared"]
    activation, network = fitting(member)
    errors = [relative_error(*problem(member, activation, network, seed)) for seed in range(3)]
    worst = max(errors)
    model = f"{activation}, {network['output']}"
    return [member.name, model, f"{worst:.1e}", f"{GOAL_GRADIENT:.0e}", verdict(worst <= GOAL_GRADIENT)]


def fitting(member: type[Any]) -> tuple[str, dict[str, Any]]:
    """An activation and a network that give a term what it needs; an activation goes with squared error."""
    if issubclass(member, ff.Activation):
        return member.name, {"name": "linear", "output": "identity"}
    for activation in sorted(ff.Activation.registry):
        for output in ("identity", "sigmoid"):
            network = {"name": "linear", "output": output, "unit_norm": False}
            if member.needs <= ff.Autoencoder(D, L, activation, network=network).gives:
                return activation, network
    raise LookupError(f"no activation and output give term {member.name!r} what it needs: {sorted(member.needs)}")


def problem(
    member: type[Any], activation: str, network: dict[str, Any], seed: int
) -> tuple[Callable[[], Tensor], list[Tensor], Callable[[], Tensor]]:
    """(value of the objective, its parameters, pre-activations): a model, rows, and one term."""
    is_term = issubclass(member, ff.Term)
    term = member() if is_term else ff.MSE()
    model = ff.Autoencoder(D, L, activation, network=network, dtype=torch.float64, seed=seed)
    x = torch.rand(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    since_fired = torch.arange(L) * 1000  # half of the latents are dead, for terms that look after the dead
    state = ff.TrainState(step=5, samples=B * 5, since_fired=since_fired, lr=1e-3, dead_after=L * 500)

    # What a term declares constant (AuxK's residual) must not move with the parameters in the difference either.
    frozen = model(x, x, state).recon.detach() if is_term and "linear_decoder" in term.needs else None

    def value() -> Tensor:
        out = model(x, x, state)
        return term(model, out if frozen is None else out._replace(recon=frozen), state)

    return value, [p for p in model.parameters() if p.requires_grad], lambda: model(x, x, state).pre_acts


def relative_error(
    value: Callable[[], Tensor], parameters: list[Tensor], pre_acts: Callable[[], Tensor], step: float = 1e-4
) -> float:
    """Of the derivative along a random direction of the parameters' own size that crosses no kink."""
    start = [p.detach().clone() for p in parameters]
    gradient = torch.autograd.grad(value(), parameters, allow_unused=True)
    for attempt in range(200):
        random = torch.Generator().manual_seed(attempt)
        direction = [torch.randn(p.shape, dtype=p.dtype, generator=random) * _size(p) for p in start]
        slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True) if g is not None)

        def at(t: float, direction: list[Tensor] = direction) -> float:
            with torch.no_grad():
                for p, p0, d in zip(parameters, start, direction, strict=True):
                    p.copy_(p0 + t * d)
                return float(value())

        orders = []
        for t in (-step, 0.0, step):
            at(t)
            orders.append(_pattern(pre_acts()))
        if not all(torch.equal(order, orders[1]) for order in orders):
            continue
        coarse = (at(step) - at(-step)) / (2 * step)
        fine = (at(step / 2) - at(-step / 2)) / step
        at(0.0)
        return abs((4 * fine - coarse) / 3 - slope) / abs(slope)
    raise RuntimeError("every direction crosses a kink; make the step smaller")


def _size(p: Tensor) -> float:
    """Root mean square, or 0.1 for a parameter that starts at 0."""
    return float(p.square().mean().sqrt()) or 0.1


def _pattern(pre_acts: Tensor) -> Tensor:
    """Signs, and order within each row: what a kink would change."""
    return torch.cat([pre_acts.sign(), pre_acts.argsort(dim=1).to(pre_acts.dtype)], dim=1)


# ----------------------------------------------------------------------------------------------------- KL


def kl_rows() -> list[list[str]]:
    rows = []
    for rho in (1e-4, 0.05, 0.5):
        for name, logits in kl_cases().items():
            rows.append(kl_row(name, logits, rho))
    return rows


def kl_cases() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(100, 1, dtype=torch.float64, generator=random)
    return {
        "normal around -3": noise - 3,
        "mean 1e-300": torch.full_like(noise, -690.7755278982137),
        "mean 1 - 1e-16": torch.full_like(noise, 36.841361487904734),
        "half +40, half -120": 160 * (noise > 0).double() - 120,
        "all +10,000": torch.full_like(noise, 1e4),
        "all -10,000": torch.full_like(noise, -1e4),
    }


def kl_row(name: str, logits: Tensor, rho: float) -> list[str]:
    """Value and gradient of ``KLSparsity`` on these pre-activations of a logistic unit."""
    model = ff.Autoencoder(1, 1, "sigmoid", dtype=torch.float64)
    z = logits.clone().requires_grad_()
    out = ff.ForwardOutput(x=z, x_in=z, pre_acts=z, latents=z.sigmoid(), recon=z, recon_logits=z)
    value = ff.KLSparsity(weight=1.0, rho=rho)(model, out)
    value.backward()
    exact = kl_reference(logits, rho)
    got = float(value.detach())
    error = float(abs((mpmath.mpf(got) - exact) / exact))
    gradient = float(z.grad.abs().sum())
    alive = error <= GOAL_KL and 0 < gradient < float("inf")
    others = [as_typed(logits, rho, clamp) for clamp in (0.0, 1e-6)]
    return [name, f"{rho:g}", f"{got:.6g}", f"{error:.1e}", f"{gradient:.2g}", *others, verdict(alive)]


def as_typed(logits: Tensor, rho: float, clamp: float) -> str:
    """|gradient| of the formula as it stands in the book, in float32; its mean clamped off 0 and 1, or not."""
    z = logits.float().requires_grad_()
    mean = z.sigmoid().mean(0)
    mean = mean.clamp(clamp, 1 - clamp) if clamp else mean
    kl = rho * torch.log(rho / mean) + (1 - rho) * torch.log((1 - rho) / (1 - mean))
    kl.sum().backward()
    return f"{float(z.grad.abs().sum()):.2g}"


def kl_reference(logits: Tensor, rho: float) -> mpmath.mpf:
    """The textbook formula, with as many digits as it takes to subtract a mean of exp(-10,000) from 1."""
    with mpmath.workdps(5000 if float(logits.abs().max()) > 1000 else 700):
        means = [1 / (1 + mpmath.exp(-mpmath.mpf(float(z)))) for z in logits]
        mean, target = mpmath.fsum(means) / len(means), mpmath.mpf(rho)
        return target * mpmath.log(target / mean) + (1 - target) * mpmath.log((1 - target) / (1 - mean))


def verdict(met: bool) -> str:
    return "ok" if met else "MISSED"


if __name__ == "__main__":
    main()
