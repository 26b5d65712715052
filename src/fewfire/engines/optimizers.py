"""The two update rules. Their state is plain tensors named by parameter, so any engine resumes another's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fewfire.contracts import Optimizer

__all__ = ["LBFGS", "Adam", "UpdateRule", "make_optimizer"]


class UpdateRule(Protocol):
    """Turns the gradients that lie in ``.grad`` into a step."""

    def step(self, lr: float, loss: Tensor, evaluate: Callable[[], Tensor]) -> None:
        """``loss`` belongs to the present gradients; ``evaluate`` computes both afresh at the present parameters."""
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None: ...


def make_optimizer(settings: Optimizer, parameters: Mapping[str, Tensor]) -> UpdateRule:
    if settings.name == "adam":
        return Adam(parameters, settings.betas, settings.eps)
    return LBFGS(parameters)


class Adam:
    """Kingma & Ba 2015, algorithm 1, by torch's fused kernel.

    Called directly: making a ``torch.optim.Adam`` imports torch's compiler, which takes as long as all of torch.
    """

    def __init__(self, parameters: Mapping[str, Tensor], betas: tuple[float, float], eps: float) -> None:
        self.parameters = dict(parameters)
        self.betas = betas
        self.eps = eps
        # torch counts steps in float32 beside each parameter; a parameter without a gradient is not stepped
        device = next((p.device for p in parameters.values()), None)
        self._steps = torch.zeros(len(parameters), dtype=torch.float32, device=device)
        self.moments: dict[str, dict[str, Tensor]] = {
            "exp_avg": {n: torch.zeros_like(p) for n, p in parameters.items()},
            "exp_avg_sq": {n: torch.zeros_like(p) for n, p in parameters.items()},
            "step": dict(zip(parameters, self._steps.unbind(), strict=True)),
        }

    def step(self, lr: float, loss: Tensor, evaluate: Callable[[], Tensor]) -> None:
        gradients = {n: p.grad for n, p in self.parameters.items() if p.grad is not None}
        if gradients:  # else nothing in the objective depends on a parameter at this step
            self.move(gradients, lr)

    @torch.no_grad()
    def move(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One step of the parameters that have a gradient here."""
        average, square, steps = ([by_name[n] for n in gradients] for by_name in self.moments.values())
        self.count(gradients)
        torch._fused_adam_(
            [self.parameters[n] for n in gradients],
            list(gradients.values()),
            average,
            square,
            [],
            steps,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def count(self, names: Collection[str]) -> None:
        """Another step of these parameters."""
        if len(names) == len(self.parameters):
            self._steps.add_(1)
            return
        for name in names:
            self.moments["step"][name].add_(1)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"{kind}.{name}": t for kind, by_name in self.moments.items() for name, t in by_name.items()}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for key, tensor in self.state_dict().items():
            tensor.copy_(tensors[key])


class LBFGS:
    """Limited-memory BFGS with a strong-Wolfe line search; one step is one iteration over the full batch.

    Nocedal & Wright 2006, algorithms 7.4 (two-loop recursion) and 3.5, 3.6 (line search). Directions and inner
    products are taken in float64 whatever the parameters' dtype: near a minimum the differences of gradients
    cancel.
    """

    def __init__(self, parameters: Mapping[str, Tensor], history: int = 20) -> None:
        self.parameters = dict(parameters)
        self.moves: deque[Tensor] = deque(maxlen=history)  # s_i: differences of parameters
        self.bends: deque[Tensor] = deque(maxlen=history)  # y_i: differences of gradients

    def step(self, lr: float, loss: Tensor, evaluate: Callable[[], Tensor]) -> None:
        x0, g0 = self._flat_parameters(), self._flat_gradient()
        direction = self._direction(g0)
        slope = float(direction @ g0)
        if slope >= 0:  # curvature gone stale: start again from steepest descent
            self.moves.clear()
            self.bends.clear()
            direction, slope = -g0, -float(g0 @ g0)
        if slope == 0 or lr == 0:
            return  # at a stationary point, or told to stay
        first = lr if self.moves else min(lr, 1 / float(g0.abs().sum()))

        def along(t: float) -> tuple[float, float, Tensor]:
            self._set(x0 + t * direction)
            value = float(evaluate())
            gradient = self._flat_gradient()
            return value, float(gradient @ direction), gradient

        noise = 8 * torch.finfo(loss.dtype).eps * abs(float(loss))
        t, gradient = strong_wolfe(along, first, float(loss), slope, g0, noise=noise)
        self._set(x0 + t * direction)
        if t == 0:  # the model of the curvature led nowhere: the next step is steepest descent
            self.moves.clear()
            self.bends.clear()
        move, bend = self._flat_parameters() - x0, gradient - g0
        if float(move @ bend) > 1e-10 * float(bend @ bend):
            self.moves.append(move)
            self.bends.append(bend)

    def _direction(self, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian estimate times the gradient."""
        q = -gradient
        alphas = []
        for s, y in zip(reversed(self.moves), reversed(self.bends), strict=True):
            alpha = (s @ q) / (s @ y)
            q = q - alpha * y
            alphas.append(alpha)
        if self.moves:
            s, y = self.moves[-1], self.bends[-1]
            q = q * ((s @ y) / (y @ y))
        for s, y, alpha in zip(self.moves, self.bends, reversed(alphas), strict=True):
            q = q + s * (alpha - (y @ q) / (s @ y))
        return q

    def _flat_parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.parameters.values()]).double()

    def _flat_gradient(self) -> Tensor:
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters.values()]
        ).double()

    @torch.no_grad()
    def _set(self, flat: Tensor) -> None:
        start = 0
        for p in self.parameters.values():
            p.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()

    def state_dict(self) -> dict[str, Tensor]:
        if not self.moves:
            return {}
        return {"lbfgs.moves": torch.stack(list(self.moves)), "lbfgs.bends": torch.stack(list(self.bends))}

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.moves.clear()
        self.bends.clear()
        device = next(iter(self.parameters.values())).device
        # Copies, each with memory of its own: a product of vectors may round by how they lie in memory.
        self.moves.extend(s.to(device, copy=True) for s in tensors.get("lbfgs.moves", torch.empty(0)))
        self.bends.extend(y.to(device, copy=True) for y in tensors.get("lbfgs.bends", torch.empty(0)))


def strong_wolfe(
    along: Callable[[float], tuple[float, float, Tensor]],
    t: float,
    value0: float,
    slope0: float,
    gradient0: Tensor,
    *,
    noise: float = 0.0,
    c1: float = 1e-4,
    c2: float = 0.9,
    max_evaluations: int = 25,
) -> tuple[float, Tensor]:
    """A step length where the value fell enough and the slope flattened enough, and the gradient there.

    ``along(t)`` gives value, slope and gradient at distance t. Nocedal & Wright 2006, algorithms 3.5 and 3.6,
    with cubic interpolation. Differences of values below ``noise`` mean nothing; there the slopes decide (Hager &
    Zhang 2005, the approximate Wolfe conditions), or a float32 loss could not leave a plateau. When the evaluations
    run out, the best point seen; at worst t = 0.
    """
    low = (0.0, value0, slope0, gradient0)  # the best point so far that satisfies sufficient decrease
    high: tuple[float, float, float, Tensor] | None = None
    for _ in range(max_evaluations):
        value, slope, gradient = along(t)
        here = (t, value, slope, gradient)
        fell_enough = value <= value0 + c1 * t * slope0 or (abs(value - value0) <= noise and slope <= -0.8 * slope0)
        if not fell_enough or value > low[1] + noise or not math.isfinite(slope):  # NaN has not fallen
            high = here
        elif abs(slope) <= -c2 * slope0:
            return t, gradient
        else:
            if (high is None and slope >= 0) or (high is not None and slope * (high[0] - low[0]) >= 0):
                high = low
            low = here
        if high is None:
            t *= 4.0
        else:
            t = _cubic_minimum(low, high)
            if abs(high[0] - low[0]) * abs(slope0) < 1e-12 * max(1.0, abs(value0)):
                break
    return low[0], low[3]


def _cubic_minimum(a: tuple[float, float, float, Tensor], b: tuple[float, float, float, Tensor]) -> float:
    """Where the cubic through two points and slopes is lowest, kept off the ends of the interval."""
    (ta, fa, da, _), (tb, fb, db, _) = a, b
    margin = 0.1 * (tb - ta)
    fallback = (ta + tb) / 2
    d1 = da + db - 3 * (fa - fb) / (ta - tb)
    square = d1 * d1 - da * db
    if not square >= 0:  # complex, or something is NaN
        return fallback
    d2 = square**0.5 * (1 if tb > ta else -1)
    bottom = db - da + 2 * d2
    if bottom == 0:
        return fallback
    t = tb - (tb - ta) * (db + d2 - d1) / bottom
    lo, hi = sorted((ta + margin, tb - margin))
    return min(max(t, lo), hi) if t == t else fallback
