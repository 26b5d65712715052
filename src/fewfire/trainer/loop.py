"""Trainer: draws batches from a Source and lowers a weighted sum of Terms."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from fewfire import metrics, rng
from fewfire.autoencoder import Autoencoder
from fewfire.calibration import lift_dead
from fewfire.contracts import Batch, Job, Layout, Source, StepReport, TrainState
from fewfire.corruptions import Corruption
from fewfire.disk import ModelFileError, locked
from fewfire.engines import choose
from fewfire.evaluation import Evaluation, finite_rows
from fewfire.sources import open_source
from fewfire.terms import AuxK, Term
from fewfire.tracking import MetricsLog
from fewfire.trainer import checkpoint, outcome
from fewfire.trainer.after import not_finite, settle_activation
from fewfire.trainer.before import check_held_out, fit_preprocess, start_biases
from fewfire.trainer.config import TrainConfig
from fewfire.trainer.objective import objective_of
from fewfire.trainer.pretraining import check_layers, pretrain
from fewfire.trainer.progress import make_progress, say
from fewfire.trainer.refusals import (
    check_emphasis,
    check_range,
    check_source,
    check_validation,
    nonfinite_message,
)
from fewfire.trainer.resuming import check_same, growth, identity, restore, snapshot
from fewfire.trainer.schedules import Schedules
from fewfire.trainer.signals import Interrupted, StopSignals, interruptible
from fewfire.trainer.steering import Steering
from fewfire.trainer.threads import threads, worthwhile_threads
from fewfire.trainer.validation import Best, measure

__all__ = ["SparsityWarning", "Trainer", "TrainingError"]

SUMMARY_ROWS = 50_000
LOGGED_ROWS = 256
"""of a batch, for the FVU in the log: of a wide model, a whole batch would take as long as several steps"""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do. What was committed is kept."""


class SparsityWarning(UserWarning):
    """A penalty that should have made the latents sparse did not."""


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
        Where ``metrics.jsonl`` and ``checkpoints/`` go; None: nowhere. One Trainer at a time writes there.
    validation
        Held-out rows. None: split off by ``config.validation_fraction``.
    progress
        None: shown, as a bar on a terminal and as plain lines elsewhere. False: silent.

    Raises
    ------
    ValueError
        A term needs what the model does not give, or settings contradict each other or the data.
    """

    started: ClassVar[bool] = False
    """whether who made the model has set its biases and thresholds by the data"""

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
        config = config.resolve(source.n_rows, model.n_latents)
        self.batch_size, self.total_steps = cast(int, config.batch_size), cast(int, config.steps)
        width = math.prod(model.input_shape)
        self._threads_asked = config.threads
        n_threads = config.threads or worthwhile_threads(self.batch_size, width, model.n_latents)
        self.config = config.model_copy(update={"threads": n_threads})
        check_source(model, source)
        if validation is not None:
            check_validation(model, validation, source.layout)
        if model.layout == Layout():
            model.layout = source.layout
        self.model = model.to(self.config.resolved_device(), self.config.parameter_dtype)
        self._where = self.model.device, self.model.dtype
        self.source = source
        self.validation = validation
        self.terms = objective_of(model, terms)
        if self.config.pretrain_steps:
            check_layers(model)
        self.emphasis = check_emphasis(self.terms, self.config.schedules, corruption, source)
        """whether a term asks what the corruption chose"""
        self.corruption = corruption
        self.folder = Path(folder) if folder is not None else None
        self.progress = make_progress(progress)
        self.speaks = progress is not False

        self.steps_per_epoch = math.ceil(source.n_rows / self.batch_size) if source.n_rows else None
        self.full_batch = self.steps_per_epoch == 1
        self.job = job = Job(model, tuple(self.terms.values()), self.config.optimizer_settings(), self.config.dtype)
        self.engine, self.engine_reason = choose(job, self.config.engine)
        self.lifts = self._lifts()
        """whether the biases of dead latents rise between steps"""
        self.schedules = Schedules(self.config.schedules, self.terms, model)
        self.steering: Steering | None = None
        if config.target_l0 is not None:
            self.steering = Steering(config.target_l0, self.terms, model, self.total_steps, self.config.schedules)
        self.state = self._first_state()
        self.skipped = 0
        """steps that were not finite"""
        self.seconds = 0.0
        """spent in training, those before a resume included"""
        self.summary: dict[str, float] = {}
        """what ``evaluate`` says at the end"""
        self.best = Best()
        self.validation_due = False
        self._saved_at: int | None = None
        self._given: Batch  # what the batch at work was in data space, for naming what is wrong with it
        self._log = MetricsLog(None)
        self._stop = StopSignals()

    def _lifts(self) -> bool:
        n_rows = self.source.n_rows
        if n_rows is not None and n_rows < self.model.n_latents:  # not every latent can have a row
            return False
        if self.config.optimizer != "adam":  # of L-BFGS, the curvature would be another's
            return False
        return self.model.activation.exact_zeros and any(isinstance(t, AuxK) for t in self.terms.values())

    def _first_state(self) -> TrainState:
        return TrainState(
            step=0,
            samples=0,
            since_fired=torch.zeros(self.model.latent_shape[0], dtype=torch.int64, device=self.model.device),
            lr=self.config.learning_rate_at(0),
            seed=self.config.seed,
            dead_after=cast(int, self.config.dead_after),
        )

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
            "skip", and every step was. Or what came out is not finite. Or this Trainer has trained before.
        Interrupted
            Ctrl-C, SIGTERM or SIGHUP came: training stopped after a whole step, with a checkpoint if there is a
            folder. A second signal ends it at once. It is a KeyboardInterrupt.
        ValueError
            Resumed with other settings or other data; the message names the difference.
        FileExistsError
            Not resumed, and ``folder`` holds the checkpoints of another run.
        FolderInUseError
            Another Trainer writes into ``folder``.
        OSError
            The disk refused, or has no room for two checkpoints. What was committed is whole.
        """
        with ExitStack() as around:
            if self.folder is not None:
                around.enter_context(locked(self.folder))
            around.enter_context(threads(cast(int, self.config.threads)))
            around.enter_context(self._stop.heard())
            try:
                self._start(resume)
                self._train()
                self._finish()
            except FileNotFoundError as error:
                if self.folder is None or self.folder.is_dir():
                    raise
                raise TrainingError(f"{self.folder} vanished during training, with all that was saved in it") from error
            self._stop.check("training is complete, and stopped before anything else was done")
        return self._log.history

    def _start(self, resume: bool) -> None:
        """Be where the newest checkpoint was, or at the beginning with preprocessors fitted."""
        resumed = resume and self._resume()
        if resume and self.speaks and (not resumed or self._over()):
            say(self._nothing_left() if resumed else f"nothing to resume in {self.folder}: training starts anew")
        if self.folder is not None:
            if not resumed and checkpoint.latest(self.folder / "checkpoints"):
                raise FileExistsError(
                    f"{self.folder} holds the checkpoints of a run; resume it, or choose another folder"
                )
            if not self._over():
                checkpoint.check_room(self.folder / "checkpoints", *snapshot(self), growth(self))
        if not resumed:
            if self.state.step:
                raise TrainingError(
                    f"this Trainer has made {self.state.step:,} of its {self.total_steps:,} steps, and starts only "
                    "once; make a new one with the same model to train that further"
                )
            fit_preprocess(self)
            check_held_out(self)
            if not self.started:
                start_biases(self)
            if self.config.pretrain_steps:
                pretrain(self)
        self._open_log(resumed)

    def _train(self) -> None:
        started, samples_before = time.perf_counter() - self.seconds, self.state.samples
        session = time.perf_counter()
        self.progress.start(self.total_steps, self.state.step)
        try:
            if self.validation_due:  # a signal cut it short
                self._validate_and_save()
            self._leave_if_told()
            for batch in self._batches():
                check_range(self.model, batch)
                report = self._step(batch)
                self.seconds = time.perf_counter() - started
                speed = (self.state.samples - samples_before) / max(time.perf_counter() - session, 1e-9)
                self._after_step(batch, report, speed)
                self._leave_if_told()
        finally:
            self.progress.stop()
        if self._saved_at != self.state.step:  # patience ended it between two checkpoints
            self.save_checkpoint()
        if self.skipped == self.state.step:
            raise TrainingError(f"none of {self.skipped} steps was finite, nothing was learned; check the data for NaN")
        if self.best.weights:
            self.model.load_state_dict(self.best.weights)
        if (where := not_finite(self.model)) is not None:
            step = f"after step {self.state.step:,} ({where})"
            raise TrainingError(f"the weights are not finite {step}; {self._slower()}")
        self._settle()

    def _settle(self) -> None:
        settle_activation(self)

    def _batches(self) -> Iterator[Batch]:
        """Batches in model space from where the state stands to the end of training."""
        if self.full_batch and self.corruption is None:
            self._given = next(iter(self.source.batches(self.batch_size, shuffle=False)))
            whole = self._prepare(self._given)
            while not self._over():
                yield whole
            return
        while not self._over():
            before = self.state.step
            epoch, start = divmod(self.state.step, self.steps_per_epoch or self.total_steps)
            for batch in self.source.batches(self.batch_size, seed=self.config.seed, epoch=epoch, start=start):
                self._given = batch
                yield self._prepare(batch, "corruption", self.state.step)
                if self._over():
                    return
            if self.state.step == before:
                raise TrainingError(f"the source gave no batch {start} of epoch {epoch}; training cannot go on")

    def _over(self) -> bool:
        """Whether training has come to its end, or, with patience, to nothing better for too long."""
        tired = self.config.patience is not None and self.best.misses >= self.config.patience
        return tired or self.state.step >= self.total_steps

    def _prepare(self, batch: Batch, *noise: int | str) -> Batch:
        """Data space to model space: device and dtype, preprocess, then corruption of the input alone.

        ``noise``: what the corruption is drawn from, besides the seed. Asked again with the same key, it says what it
        chose; of pairs, what differs was chosen.
        """
        model, device, dtype = self.model, *self._where
        paired = batch.x is not batch.x_in or model.preprocess_out is not None
        clean = model.to_model_space(batch.x_in.to(device)).to(dtype)
        x = model.target_to_model_space(batch.x.to(device)).to(dtype) if paired else clean
        if self.corruption is None:
            return Batch(clean, x, batch.rows, clean != x if self.emphasis else None)
        key = (self.state.seed, *noise)
        x_in = self.corruption(clean, rng.generator(*key, device=model.device))
        again = rng.generator(*key, device=model.device)
        return Batch(x_in, x, batch.rows, self.corruption.chosen(clean, again) if self.emphasis else None)

    def _step(self, batch: Batch) -> StepReport:
        state = self.state
        state.lr = self.config.learning_rate_at(state.step)
        self.schedules.apply(self._done(state.step))
        report = self.engine.step(batch, state)
        if report.bad_rows is None:
            n_rows = len(batch.rows)
            state.since_fired.add_(n_rows).masked_fill_(report.fired, 0)
            state.samples += n_rows
            if self.steering is not None:
                self.steering.after(report, batch, state)
            if self.lifts and state.any_dead:
                lift_dead(self.model, state.dead, cast(float, self.config.learning_rate))
        elif self.config.on_nonfinite == "stop":
            columns = self.source.layout.columns
            raise TrainingError(nonfinite_message(self._given, batch, report.bad_rows, state.step, columns))
        else:
            self.skipped += 1
        state.step += 1
        return report

    def _done(self, step: int) -> float:
        """The fraction of training at which step ``step`` has its scheduled values: the first at 0, the last at 1."""
        return step / max(1, self.total_steps - 1)

    def _after_step(self, batch: Batch, report: StepReport, speed: float) -> None:
        if report.bad_rows is None and self._due(self.config.log_every):
            self._write_log(batch, report, speed)
        self.validation_due = self.validation is not None and self._due(self.config.validate_every)
        self._validate_and_save()

    def _validate_and_save(self) -> None:
        """What is due after a step besides a line of the log. A checkpoint says if a validation is missing."""
        if self.validation_due and self.validation is not None:
            self._validate(self.validation)
        if self._due(self.config.checkpoint_every):
            self.save_checkpoint()

    def _nothing_left(self) -> str:
        return f"{self.folder} was finished already, after {self.state.step:,} steps: nothing is left to train"

    def _due(self, every: int | None) -> bool:
        """Whether something that is done every so many steps, and at the end, is to be done now."""
        return self.state.step == self.total_steps or (bool(every) and self.state.step % cast(int, every) == 0)

    # ------------------------------------------------------------------------------ before and after

    def _validate(self, source: Source) -> None:
        """Objective and FVU on held-out rows, with the same noise each time; or nothing, when a signal comes."""
        source = interruptible(source, self._stop, "")
        given = map(finite_rows, source.batches(4096, shuffle=False))
        batches = (self._prepare(raw, "validation", i) for i, raw in enumerate(given) if len(raw.rows))
        try:
            loss, fvu = measure(self.model, self.terms, batches)
        except Interrupted:
            return
        self.validation_due = False
        self._log.log(self.state.step, {"val_loss": loss, "val_fvu": fvu})
        if self.schedules.settled(self._done(self.state.step - 1)):  # the values that this loss was measured with
            self.best.compare(loss, self.model, keep=self.config.patience is not None)

    def _leave_if_told(self) -> None:
        """Between two steps: if a signal came, commit a checkpoint and raise Interrupted."""
        if self._stop.received is None:
            return
        done = f"stopped after step {self.state.step:,} of {self.total_steps:,}"
        if self.folder is None:
            self._stop.check(f"{done}; without a folder there is no checkpoint to go on from")
        if self._saved_at != self.state.step:
            self.save_checkpoint()
        self._stop.check(f"{done}; --resume (or fit(resume=True)) goes on from {self._newest()}")

    def _finish(self) -> None:
        """Say what came out and whether the penalties worked."""
        rest = f"; --resume (or fit(resume=True)) goes on from {self._newest()}" if self.folder else ""
        source = interruptible(self.validation or self.source, self._stop, f"stopped before the summary{rest}")
        # Rows that training did not come to may be bad in spite of on_nonfinite "stop"; the work is done all the same.
        evaluation = Evaluation.over(self.model, source, max_rows=SUMMARY_ROWS, skip_nonfinite=True)
        self.summary = evaluation.result()
        if math.isfinite(evaluation.target.squared_deviation) and not math.isfinite(self.summary["mse"]):
            raise TrainingError(f"training diverged: reconstructions are not finite at the end; {self._slower()}")
        if not (self._log.history and "summary" in self._log.history[-1]):  # a finished run was resumed
            last = {"seconds": round(self.seconds, 3), "skipped": self.skipped, "summary": self.summary}
            self._log.log(self.state.step, last)
        self._log.finish()
        if self.speaks:
            say(self.describe())
        for objection in self.objections():
            warnings.warn(objection, SparsityWarning, stacklevel=3)

    def _slower(self) -> str:
        return f"lower the learning rate (now {self.config.learning_rate:g}), or rescale the data"

    def describe(self) -> str:
        """What training came to, in a sentence."""
        return outcome.describe(self)

    def objections(self) -> Iterator[str]:
        """A sentence for whatever did not do its work; each becomes a SparsityWarning when training ends."""
        return outcome.objections(self)

    # ------------------------------------------------------------------------------ log and checkpoints

    def _open_log(self, resumed: bool) -> None:
        self._log = MetricsLog(self.folder, resume=resumed)
        if resumed:
            self._log.truncate_after(self.state.step)
            self._log_engine_if_new()
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

    def _log_engine_if_new(self) -> None:
        """Resumed with another, a run has other last digits; with the same, it leaves the log as it would have been."""
        before = next((line["engine"] for line in reversed(self._log.history) if "engine" in line), "")
        if self._over() or before.partition(" (")[0] == self.engine_reason.partition(" (")[0]:
            return
        self._log.log(self.state.step, {"engine": self.engine_reason})
        if self.speaks:
            say(f"from step {self.state.step:,} on the engine is {self.engine_reason}; before, it was {before}")

    def _write_log(self, batch: Batch, report: StepReport, speed: float) -> None:
        scalars = {name: float(value) for name, value in report.scalars.items()}
        x_in, x = batch.x_in[:LOGGED_ROWS], batch.x[:LOGGED_ROWS]
        recon = self.model.recon(x_in)  # a hundredth of the steps, so that the others need not compute it
        values = {**scalars, "fvu": metrics.fvu(x, recon)}
        dead = int(self.state.dead.sum())
        self._log.log(
            self.state.step,
            {
                "samples": self.state.samples,
                **values,
                "dead": dead,
                **({"skipped": self.skipped} if self.skipped else {}),
                "lr": self.state.lr,
                "seconds": round(self.seconds, 3),
                "rows_per_second": round(speed),
            },
        )
        self.progress.advance(self.state.step, speed, values)

    def save_checkpoint(self) -> None:
        """Commit everything that resuming needs, if there is a folder to commit it to."""
        if self.folder is None:
            return
        self._log.sync()  # a checkpoint must not outlive the records that lead to it
        checkpoint.save(self.folder / "checkpoints", self.state.step, *snapshot(self))
        self._saved_at = self.state.step

    def _newest(self) -> Path | None:
        return checkpoint.latest(self.folder / "checkpoints") if self.folder is not None else None

    def _resume(self) -> bool:
        """Load the newest checkpoint; False when there is none."""
        newest = self._newest()
        if newest is None:
            return False
        try:
            groups, metadata = checkpoint.load(newest)
        except ModelFileError as error:
            raise ModelFileError(f"{error}; without this file --resume goes on from the one before") from None
        check_same(newest, metadata["run"], identity(self))
        checkpoint.tidy(newest.parent)
        restore(self, groups, metadata)
        self._saved_at = self.state.step
        if self._threads_asked is None and metadata["threads"]:  # sums may round differently on another number
            torch.set_num_threads(metadata["threads"])
            self.config = self.config.model_copy(update={"threads": metadata["threads"]})  # the next resume reads it
        if self.state.step:  # the run may be over: leave the values of its last step
            self.schedules.apply(self._done(self.state.step - 1))
        return True
