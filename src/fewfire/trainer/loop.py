"""Trainer: draws batches from a Source and lowers a weighted sum of Terms."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from fewfire import metrics, rng
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Batch, Job, Layout, Source, StepReport, TrainState
from fewfire.corruptions import Corruption
from fewfire.disk import ModelFileError
from fewfire.engines import choose
from fewfire.engines.autograd import labelled, objective
from fewfire.evaluation import Evaluation
from fewfire.sources import open_source
from fewfire.terms import MSE, Term
from fewfire.tracking import MetricsLog
from fewfire.trainer import checkpoint
from fewfire.trainer.config import TrainConfig
from fewfire.trainer.progress import make_progress
from fewfire.trainer.refusals import check_needs, check_range, check_shapes, differences, nonfinite_message
from fewfire.trainer.schedules import Schedules
from fewfire.trainer.threads import threads, worthwhile_threads

__all__ = ["SparsityWarning", "Trainer", "TrainingError"]

SUMMARY_ROWS = 50_000
FREE_TO_CHANGE = {"checkpoint_every", "log_every", "device", "engine"}
"""Settings that may differ on resume: they do not touch the numbers."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do. What was committed is kept."""


class SparsityWarning(UserWarning):
    """A penalty that should have made the latents sparse did not."""


@dataclass
class _Best:
    """The best validation so far, for early stopping."""

    loss: float = math.inf
    misses: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Trainer:
    """
    ::

        Trainer(model, source, terms=[MSE(), AuxK(weight=1 / 32)], config=TrainConfig(steps=3000)).fit()

    Parameters
    ----------
    model
        Trained in place; its preprocessors are fitted first if they are not, and it takes the source's layout if it
        has none.
    source
        Rows in data space: a Source, or whatever ``open_source`` makes one of, such as an array.
    terms
        None: ``MSE`` and what usually goes with the activation.
    config
        TrainConfig; None: its defaults.
    corruption
        Applied to the preprocessed input; the target stays clean.
    folder
        Where ``metrics.jsonl`` and ``checkpoints/`` go; None: nowhere.
    validation
        Held-out rows. None: split off by ``config.validation_fraction``.
    progress
        None: shown, as a bar on a terminal and as plain lines elsewhere. False: silent.

    Raises
    ------
    ValueError
        A term needs what the model does not give, or settings contradict each other or the data.
    """

    def __init__(
        self,
        model: Autoencoder,
        source: Any,
        terms: Sequence[Term] | None = None,
        config: TrainConfig | None = None,
        *,
        corruption: Corruption | None = None,
        folder: str | Path | None = None,
        validation: Source | None = None,
        progress: bool | None = None,
    ) -> None:
        config = config or TrainConfig()
        source = open_source(source)
        if validation is None and config.validation_fraction:
            source, validation = source.split(config.validation_fraction, config.seed)
        self.config = config.resolve(source.n_rows)
        check_shapes(model, source)
        if validation is not None:
            check_shapes(model, validation)
            if validation.n_rows is None:
                raise ValueError("validation would never end: expected a source with a last row, got an endless one")
        if model.layout == Layout():
            model.layout = source.layout
        self.model = model.to(self.config.resolved_device(), getattr(torch, self.config.dtype))
        self.source = source
        self.validation = validation
        self.terms = labelled(tuple(terms if terms is not None else _default_terms(model)))
        if not self.terms:
            raise ValueError("nothing to lower: expected at least one term, such as mse, in the objective; got none")
        for term in self.terms.values():
            check_needs(term, model)
        self.corruption = corruption
        self.folder = Path(folder) if folder is not None else None
        self.progress = make_progress(progress)
        self.speaks = progress is not False

        self.batch_size, self.total_steps = cast(int, self.config.batch_size), cast(int, self.config.steps)
        self.steps_per_epoch = math.ceil(source.n_rows / self.batch_size) if source.n_rows else None
        self.full_batch = self.steps_per_epoch == 1
        job = Job(model, tuple(self.terms.values()), self.config.optimizer_settings())
        self.engine, self.engine_reason = choose(job, self.config.engine)
        self.schedules = Schedules(self.config.schedules, self.terms, model)
        self.state = TrainState(
            step=0,
            samples=0,
            since_fired=torch.zeros(model.latent_shape[0], dtype=torch.int64, device=model.device),
            lr=self.config.learning_rate_at(0),
            seed=self.config.seed,
            dead_after=cast(int, self.config.dead_after),
        )
        self.skipped = 0
        self.summary: dict[str, float] = {}
        self._best = _Best()
        self._seconds = 0.0
        self._log = MetricsLog(None)

    # ------------------------------------------------------------------------------ the loop

    def fit(self, *, resume: bool = False) -> list[dict[str, Any]]:
        """Train to the end and return the log, a dict per line of ``metrics.jsonl``.

        Parameters
        ----------
        resume
            Go on from the newest checkpoint in ``folder``; without one, start. The result has the bits of a run
            that was never interrupted.

        Raises
        ------
        TrainingError
            A step was not finite and ``config.on_nonfinite`` is "stop"; the message names the rows. Or it is
            "skip", and every step was.
        ValueError
            Resumed with other settings or other data; the message names the difference.
        FileExistsError
            Not resumed, and ``folder`` holds the checkpoints of another run.
        """
        width = math.prod(self.model.input_shape)
        with threads(self.config.threads or worthwhile_threads(self.batch_size, width, self.model.n_latents)):
            self._start(resume)
            self._train()
            self._finish()
        return self._log.history

    def _start(self, resume: bool) -> None:
        """Be where the newest checkpoint was, or at the beginning with preprocessors fitted."""
        resumed = resume and self._resume()
        if not resumed:
            if self.folder is not None and checkpoint.latest(self.folder / "checkpoints"):
                raise FileExistsError(
                    f"{self.folder} holds the checkpoints of a run; resume it, or choose another folder"
                )
            self._fit_preprocess()
        self._open_log(resumed)

    def _train(self) -> None:
        started, samples_before = time.perf_counter() - self._seconds, self.state.samples
        session = time.perf_counter()
        self.progress.start(self.total_steps, self.state.step)
        try:
            for batch in self._batches():
                if self.state.step == 0:
                    check_range(self.model, batch.x)
                report = self._step(batch)
                self._seconds = time.perf_counter() - started
                speed = (self.state.samples - samples_before) / max(time.perf_counter() - session, 1e-9)
                self._after_step(batch, report, speed)
        finally:
            self.progress.stop()
        if self.skipped == self.state.step:
            raise TrainingError(f"none of {self.skipped} steps was finite, nothing was learned; check the data for NaN")

    def _batches(self) -> Iterator[Batch]:
        """Batches in model space from where the state stands to the end of training."""
        if self.full_batch and self.corruption is None:
            whole = self._prepare(next(iter(self.source.batches(self.batch_size, shuffle=False))))
            while not self._over():
                yield whole
            return
        while not self._over():
            before = self.state.step
            epoch, start = divmod(self.state.step, self.steps_per_epoch or self.total_steps)
            for batch in self.source.batches(self.batch_size, seed=self.config.seed, epoch=epoch, start=start):
                yield self._prepare(batch, "corruption", self.state.step)
                if self._over():
                    return
            if self.state.step == before:
                raise TrainingError(f"the source gave no batch {start} of epoch {epoch}; training cannot go on")

    def _over(self) -> bool:
        """Whether training has come to its end, or, with patience, to nothing better for too long."""
        tired = self.config.patience is not None and self._best.misses >= self.config.patience
        return tired or self.state.step >= self.total_steps

    def _prepare(self, batch: Batch, *noise: int | str) -> Batch:
        """Data space to model space: device and dtype, preprocess, then corruption of the input alone.

        ``noise``: what the corruption is drawn from, besides the seed.
        """
        model, dtype = self.model, self.model.dtype
        paired = batch.x is not batch.x_in or model.preprocess_out is not None
        x_in = model.to_model_space(batch.x_in.to(model.device)).to(dtype)
        x = model.target_to_model_space(batch.x.to(model.device)).to(dtype) if paired else x_in
        if self.corruption is not None:
            x_in = self.corruption(x_in, rng.generator(self.state.seed, *noise, device=model.device))
        return Batch(x_in, x, batch.rows)

    def _step(self, batch: Batch) -> StepReport:
        state = self.state
        state.lr = self.config.learning_rate_at(state.step)
        self._apply_schedules(state.step)
        report = self.engine.step(batch, state)
        if report.bad_rows is None:
            state.since_fired += len(batch.rows)
            state.since_fired[report.fired] = 0
            state.samples += len(batch.rows)
        elif self.config.on_nonfinite == "stop":
            raise TrainingError(nonfinite_message(batch, report.bad_rows, state.step))
        else:
            self.skipped += 1
        state.step += 1
        return report

    def _apply_schedules(self, step: int) -> None:
        """The first step has the values at 0, the last one those at 1."""
        self.schedules.apply(step / max(1, self.total_steps - 1))

    def _after_step(self, batch: Batch, report: StepReport, speed: float) -> None:
        if report.bad_rows is None and self._due(self.config.log_every):
            self._write_log(batch, report, speed)
        if self.validation is not None and self._due(self.config.validate_every):
            self._validate(self.validation)
        if self._due(self.config.checkpoint_every):
            self.save_checkpoint()

    def _due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done now."""
        return self.state.step == self.total_steps or (bool(every) and self.state.step % cast(int, every) == 0)

    # ------------------------------------------------------------------------------ before and after

    def _fit_preprocess(self) -> None:
        """Fit what the model carries and was not fitted yet, on the training rows as they come."""

        def inputs() -> Iterator[Tensor]:
            return (b.x_in for b in self.source.batches(8192, shuffle=False))

        def targets() -> Iterator[Tensor]:
            return (b.x for b in self.source.batches(8192, shuffle=False))

        for preprocess, stream in ((self.model.preprocess, inputs), (self.model.preprocess_out, targets)):
            if preprocess is not None and not preprocess.fitted:
                preprocess.fit(stream)
        self.model.to(self.model.device)

    def _validate(self, source: Source) -> None:
        """Objective and FVU on held-out rows, in model space, as at inference; with the same noise each time."""
        total, error, moments = 0.0, 0.0, metrics.Moments()
        with torch.no_grad():
            for i, raw in enumerate(source.batches(4096, shuffle=False)):
                batch = self._prepare(raw, "validation", i)
                out = self.model(batch.x_in, batch.x)
                total += float(objective(self.model, self.terms, out, None)[0]) * len(out.x)
                error += float((out.recon.double() - out.x.double()).square().sum())
                moments.update(out.x.flatten(1).cpu())
        loss = total / moments.count
        fvu = metrics.unexplained(error, moments.squared_deviation)
        self._log.log(self.state.step, {"val_loss": loss, "val_fvu": fvu})
        if loss < self._best.loss:
            self._best.loss, self._best.misses = loss, 0
            if self.config.patience:
                self._best.weights = {n: t.detach().clone() for n, t in self.model.state_dict().items()}
        else:
            self._best.misses += 1

    def _finish(self) -> None:
        """Take the best weights if they were kept, then say what came out and whether the penalties worked."""
        if self._best.weights:
            self.model.load_state_dict(self._best.weights)
        self.summary = Evaluation.over(
            self.model,
            self.validation or self.source,
            max_rows=SUMMARY_ROWS,
            skip_nonfinite=self.config.on_nonfinite == "skip",
        ).result()
        if not (self._log.history and "summary" in self._log.history[-1]):  # a finished run was resumed
            last = {"seconds": round(self._seconds, 3), "skipped": self.skipped, "summary": self.summary}
            self._log.log(self.state.step, last)
        self._log.finish()
        if self.speaks:
            sys.stderr.write(self.describe() + "\n")
        found = {**self.summary, "n_positions": math.prod(self.model.latent_shape)}
        verdicts = [term.verdict(found) for term in self.terms.values()]
        for verdict in (*verdicts, self._collapse()):
            if verdict is not None:
                warnings.warn(verdict, SparsityWarning, stacklevel=3)

    def _collapse(self) -> str | None:
        """A sentence when most of the dictionary came to nothing."""
        dead = self.summary["dead_fraction"]
        if not self.model.activation.exact_zeros or dead <= 0.5:
            return None
        return (
            f"{dead:.0%} of the latents never fire; lower the learning rate (now {self.config.learning_rate:g}), "
            "train longer, or ask for fewer latents"
        )

    def describe(self) -> str:
        """What training came to, in a sentence."""
        s = self.summary
        dead = round(s["dead_fraction"] * s["n_latents"])
        skipped = f"; {self.skipped} steps were not finite and were skipped" if self.skipped else ""
        fire, never = ("fire", "fire") if self.model.activation.exact_zeros else ("exceed one half", "do")
        per_column = 1 - s["fvu_columns"]  # one column of large scale can hold nearly all of the variance
        apart = abs(per_column - s["explained_variance"]) > 0.1
        each = f" ({per_column:.1%} of an average column's)" if apart else ""
        return (
            f"{self.state.step:,} steps in {self._seconds:.1f} s: "
            f"{s['explained_variance']:.1%} of variance explained{each}, "
            f"mean activation {s['mean_activation']:.3g}, {s['l0']:.1f} of {s['n_latents']:,} latents {fire} per row, "
            f"{dead} never {never}{skipped}"
        )

    # ------------------------------------------------------------------------------ log and checkpoints

    def _open_log(self, resumed: bool) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        self._log = MetricsLog(self.folder, resume=resumed)
        if resumed:
            self._log.truncate_after(self.state.step)
            return
        self._log.log(
            0,
            {
                "engine": self.engine_reason,
                "total_steps": self.total_steps,
                "batch_size": self.batch_size,
                "rows": self.source.n_rows,
            },
        )

    def _write_log(self, batch: Batch, report: StepReport, speed: float) -> None:
        scalars = {name: float(value) for name, value in report.scalars.items()}
        with torch.no_grad():  # a hundredth of the steps, so that the others need not compute it
            recon = self.model(batch.x_in, batch.x).recon
        values = {**scalars, "fvu": metrics.fvu(batch.x, recon)}
        dead = int(self.state.dead.sum())
        self._log.log(
            self.state.step,
            {
                "samples": self.state.samples,
                **values,
                "dead": dead,
                "lr": self.state.lr,
                "seconds": round(self._seconds, 3),
                "rows_per_second": round(speed),
            },
        )
        self.progress.advance(self.state.step, speed, values)

    def save_checkpoint(self) -> None:
        """Commit everything that resuming needs, if there is a folder to commit it to."""
        if self.folder is None:
            return
        groups = {
            "model": self.model.state_dict(),
            "engine": self.engine.state_dict(),
            "state": {"since_fired": self.state.since_fired},
            "best": self._best.weights,
        }
        metadata = {
            "step": self.state.step,
            "samples": self.state.samples,
            "seconds": self._seconds,
            "skipped": self.skipped,
            "best_loss": None if math.isinf(self._best.loss) else self._best.loss,
            "misses": self._best.misses,
            "run": self._identity(),
        }
        self._log.sync()  # a checkpoint must not outlive the records that lead to it
        checkpoint.save(self.folder / "checkpoints", self.state.step, groups, metadata)

    def _identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it resumes."""
        model = self.model.config()
        return {
            "train": self.config.model_dump(mode="json", exclude=FREE_TO_CHANGE),
            "model": {**model, "activation": self._unscheduled("activation", model["activation"])},
            "terms": [self._unscheduled(label, term.config()) for label, term in self.terms.items()],
            "corruption": self.corruption.config() if self.corruption else None,
            "data": self.source.fingerprint,
        }

    def _unscheduled(self, label: str, config: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in config.items() if f"{label}.{k}" not in self.config.schedules}

    def _resume(self) -> bool:
        """Load the newest checkpoint; False when there is none."""
        newest = checkpoint.latest(self.folder / "checkpoints") if self.folder else None
        if newest is None:
            return False
        try:
            groups, metadata = checkpoint.load(newest)
        except ModelFileError as error:
            raise ModelFileError(f"{error}; without this file --resume goes on from the one before") from None
        found = list(differences(metadata["run"], self._identity()))
        if found:
            raise ValueError(
                f"cannot resume from {newest}: {'; '.join(found[:4])}. "
                "Train with the settings and data it was started with, or into another folder"
            )
        self.model.load_state_dict(groups["model"])
        self.engine.load_state_dict(groups.get("engine", {}))
        self.state.since_fired.copy_(groups["state"]["since_fired"])
        self.state.step, self.state.samples = metadata["step"], metadata["samples"]
        best = metadata["best_loss"]
        self._best = _Best(math.inf if best is None else best, metadata["misses"], groups.get("best", {}))
        self._seconds, self.skipped = metadata["seconds"], metadata["skipped"]
        if self.state.step:  # the run may be over: leave the values of its last step
            self._apply_schedules(self.state.step - 1)
        return True


def _default_terms(model: Autoencoder) -> list[Term]:
    """Squared error, and what usually goes with the activation as far as this model gives what it needs."""
    return [MSE(), *(term for term in model.activation.default_terms() if term.needs <= model.gives)]
