"""From a configuration to the objects that train, and back to a configuration with nothing left open."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewfire.autoencoder import Autoencoder, default_latents
from fewfire.contracts import Source
from fewfire.corruptions import Corruption
from fewfire.runs.config import ModelConfig, RunConfig
from fewfire.scoring import threshold
from fewfire.sources import KINDS, open_source
from fewfire.terms import Term
from fewfire.trainer import Trainer, start_sparse

__all__ = ["make_trainer", "open_like", "provenance", "resolved"]

USUAL_ROWS = 0.99
"""share of the training rows that `fewfire score` takes for usual"""


def make_trainer(
    config: RunConfig, source: Source, *, folder: Path | None = None, progress: bool | None = None
) -> Trainer:
    """Model, terms and Trainer for a configuration and its opened source."""
    model = Autoencoder(
        source.row_shape,
        config.model.n_latents or default_latents(source.row_shape),
        config.model.activation,
        network=config.model.network,
        d_out=source.target_shape,
        preprocess=_preprocess(config.data.preprocess, source, "suggested_preprocess"),
        preprocess_out=_preprocess_out(config.data.preprocess_out, source),
        layout=source.layout,
        seed=config.train.seed,
    )
    terms = None if config.objective is None else [Term.from_config(t) for t in config.objective]
    corruption = None if config.corruption is None else Corruption.from_config(config.corruption)
    trainer = Trainer(model, source, terms, config.train, corruption=corruption, folder=folder, progress=progress)
    start_sparse(model, trainer.terms.values())
    return trainer


def _preprocess(spec: Any, source: Source, suggestion: str) -> Any:
    if spec != "auto":
        return spec
    suggested = getattr(source, suggestion, None)
    return "standardize" if suggested is None else suggested


def _preprocess_out(spec: Any, source: Source) -> Any:
    """Targets have scales of their own, in which the rows' would leave them far from 1."""
    if getattr(source, "has_target", source.target_shape != source.row_shape):
        return _preprocess(spec, source, "suggested_preprocess_out")
    if spec not in ("auto", None):
        raise ValueError(
            f"data.preprocess_out={spec!r:.60} is for targets, and the data give none; name them with "
            "data.options.target, or leave it out"
        )
    return None


def resolved(config: RunConfig, trainer: Trainer) -> RunConfig:
    """The configuration with what the trainer made of its defaults, so that it can be run again as it stands."""
    described = trainer.model.config()
    preprocess = {k: described[k] for k in ("preprocess", "preprocess_out") if k == "preprocess" or described[k]}
    return RunConfig(
        data=config.data.model_copy(update=preprocess),
        model=ModelConfig(**{k: described[k] for k in ("n_latents", "activation", "network")}),
        objective=[term.config() for term in trainer.terms.values()],
        corruption=trainer.corruption.config() if trainer.corruption else None,
        train=trainer.config,
    )


def provenance(trainer: Trainer, data: str) -> dict[str, Any]:
    """Where a model comes from, and which reconstruction errors are usual there; saved with it."""
    usual = threshold(trainer.model, trainer.validation or trainer.source, quantile=USUAL_ROWS)
    origin = getattr(trainer.source, "origin", None)
    return {
        "data": data,
        "data_fingerprint": trainer.source.fingerprint,
        **({} if origin is None else {"origin": origin}),
        "rows": trainer.source.n_rows,
        "objective": [term.config() for term in trainer.terms.values()],
        "train": trainer.config.model_dump(mode="json"),
        "engine": trainer.engine_reason,
        "steps": trainer.state.step,
        "skipped": trainer.skipped,
        "score": {"quantile": USUAL_ROWS, "threshold": usual if math.isfinite(usual) else None},
        "summary": {k: v if math.isfinite(v) else None for k, v in trainer.summary.items()},
    }


def open_like(model: Autoencoder, options: Mapping[str, Any], data: Any, given: Mapping[str, Any]) -> Source:
    """Other data for a trained model, read as its own were.

    A file with named columns gives those that the model knows, by name and in the model's order, whatever else it
    holds; windows are cut as in training. Of the ``options`` of the training data, those count that this kind of
    data has; ``target`` and ``views``, which no kind has, stay with the rows that they were given with. ``given`` are
    options of these data, such as a target of their own.
    """
    layout = model.layout
    wanted = {name: value for name, value in options.items() if name not in ("columns", "drop")}
    if layout.kind == "series":
        wanted = {"window": layout.shape[1], **wanted}
    if layout.columns:
        wanted["columns"] = list(layout.columns)
    possible = _options_of(data)
    kept = {name: value for name, value in wanted.items() if name in possible}
    own = dict(given)
    if own.get("views") is not None and layout.columns:  # the files' names may be others, the views are the same
        own.setdefault("view_names", list(dict.fromkeys(name.partition(":")[0] for name in layout.columns)))
    return open_source(data, **{**kept, **own})


def _options_of(data: Any) -> set[str]:
    """The options that whatever opens this path takes; windows are cut from anything."""
    if not isinstance(data, str | Path) or (isinstance(data, str) and data in KINDS):
        return set()
    kind = next((kind for kind in KINDS.values() if kind.accepts is not None and kind.accepts(Path(data))), None)
    return set() if kind is None else {*inspect.signature(kind.open).parameters, "window", "stride"}
