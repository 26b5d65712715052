"""The engine that is the truth: torch's autograd on the sum of the terms, then Adam or L-BFGS."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewfire import metrics
from fewfire.contracts import Batch, ForwardOutput, Job, StepReport, TrainState
from fewfire.engines.optimizers import make_optimizer

__all__ = ["AutogradEngine", "forward", "labelled", "objective", "uncommitted"]


def forward(model: Any, batch: Batch, state: TrainState | None = None) -> ForwardOutput:
    """The model's forward pass, and beside it what the batch knows of its corruption."""
    out: ForwardOutput = model(batch.x_in, batch.x, state)
    return out._replace(chosen=batch.chosen)


def objective(
    model: Any, terms: Mapping[str, Any], out: ForwardOutput, state: TrainState | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The course's Obj: ``sum of weight * term``, and the terms by label before their weights."""
    values = {label: term(model, out, state) for label, term in terms.items()}
    loss = torch.stack([terms[label].weight * value for label, value in values.items()]).sum()
    return loss, values


class AutogradEngine:
    """One step: forward, loss, backward; then, if everything is finite, project, clip, update, constrain."""

    name: ClassVar[str] = "autograd"

    def __init__(self, job: Job) -> None:
        self.model = job.model
        self.terms = labelled(job.terms)
        self.parameters = {n: p for n, p in job.model.named_parameters() if p.requires_grad}
        self.clip_norm = job.optimizer.clip_norm
        self.optimizer = make_optimizer(job.optimizer, self.parameters)
        self.bfloat16 = job.dtype == "bfloat16"

    @classmethod
    def refuses(cls, job: Job) -> str | None:
        if job.optimizer.name == "lbfgs" and job.model.decoder.constrained:
            return "L-BFGS cannot keep decoder rows at unit norm; give the network unit_norm: false"
        if job.optimizer.name == "lbfgs" and job.optimizer.clip_norm is not None:
            return "L-BFGS needs the gradient as it is; leave clip_norm out"
        return None

    def step(self, batch: Batch, state: TrainState) -> StepReport:
        out: ForwardOutput
        scalars: dict[str, Tensor]

        def evaluate() -> Tensor:
            """The loss at the present parameters, its gradient in ``.grad``; L-BFGS asks more than once a step."""
            nonlocal out, scalars
            for p in self.parameters.values():
                p.grad = None
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bfloat16):
                out = forward(self.model, batch, state)
            loss, values = objective(self.model, self.terms, out, state)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            scalars = {"loss": loss.detach(), **{k: v.detach() for k, v in values.items()}}
            return scalars["loss"]

        with torch.enable_grad():
            loss = evaluate()
        self.model.decoder.project_gradient()
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = _norm(gradients)  # one number answers both "finite?" and "how much to clip?"
        if not torch.isfinite(loss + norm):
            return uncommitted(batch, out, scalars)

        if self.clip_norm is not None and norm > self.clip_norm:
            torch._foreach_mul_(gradients, self.clip_norm / norm)
        first, first_scalars = out, scalars
        with torch.enable_grad():
            self.optimizer.step(state.lr, loss, evaluate)
        self.model.decoder.constrain()
        with torch.no_grad():
            self.model.activation.commit(first, state)
            return self._committed(first, first_scalars)

    def _committed(self, out: ForwardOutput, scalars: dict[str, Tensor]) -> StepReport:
        active = self.model.activation.active(out.latents)
        rows = len(active)
        scalars["l0"] = active.sum() / rows
        if self.model.activation.counts == "sum":
            scalars["sum"] = out.latents.sum() / rows
        return StepReport(scalars, metrics.by_latent(active).any(0))

    def state_dict(self) -> dict[str, Tensor]:
        return self.optimizer.state_dict()

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.load_state_dict(tensors)


def uncommitted(batch: Batch, out: ForwardOutput, scalars: dict[str, Tensor]) -> StepReport:
    """Name the rows that are not finite; when each row is but their sum is not, all of them.

    Data first: one bad row can reach the others through an activation or a corruption that looks at the batch.
    """
    bad = batch.rows
    for tensor in (batch.x, batch.x_in, out.recon.detach()):
        finite = _rows_finite(tensor)
        if not finite.all():
            bad = batch.rows[~finite.to(batch.rows.device)]
            break
    fired = torch.zeros(out.latents.shape[1], dtype=torch.bool, device=out.latents.device)
    return StepReport(scalars, fired, bad)


def labelled(terms: tuple[Any, ...]) -> dict[str, Any]:
    """Terms by the label under which they are logged: the name, numbered where it appears again."""
    labels: dict[str, Any] = {}
    for term in terms:
        seen = sum(label.split("#")[0] == term.name for label in labels)
        labels[f"{term.name}#{seen + 1}" if seen else term.name] = term
    return labels


def _norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all of them together."""
    if not tensors:  # nothing in the objective depends on a parameter at this step
        return torch.zeros(())
    norms: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norms


def _rows_finite(x: Tensor) -> Tensor:
    finite: Tensor = torch.isfinite(x).flatten(1).all(1)
    return finite
