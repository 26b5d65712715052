"""From a configuration to the objects that train, and back to a configuration with nothing left open."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Source
from fewfire.corruptions import Corruption
from fewfire.runs.config import ModelConfig, RunConfig
from fewfire.terms import Term
from fewfire.trainer import Trainer

__all__ = ["make_trainer", "provenance", "resolved"]

MAX_DEFAULT_LATENTS = 16_384


def make_trainer(
    config: RunConfig, source: Source, *, folder: Path | None = None, progress: bool | None = None
) -> Trainer:
    """Model, terms and Trainer for a configuration and its opened source."""
    model = Autoencoder(
        source.row_shape,
        config.model.n_latents or min(4 * math.prod(source.row_shape), MAX_DEFAULT_LATENTS),
        config.model.activation,
        network=config.model.network,
        d_out=source.target_shape,
        preprocess=_preprocess(config.data.preprocess, source),
        layout=source.layout,
        seed=config.train.seed,
    )
    terms = None if config.objective is None else [Term.from_config(t) for t in config.objective]
    corruption = None if config.corruption is None else Corruption.from_config(config.corruption)
    return Trainer(model, source, terms, config.train, corruption=corruption, folder=folder, progress=progress)


def _preprocess(spec: Any, source: Source) -> Any:
    if spec != "auto":
        return spec
    suggested = getattr(source, "suggested_preprocess", None)
    return "standardize" if suggested is None else suggested


def resolved(config: RunConfig, trainer: Trainer) -> RunConfig:
    """The configuration with what the trainer made of its defaults, so that it can be run again as it stands."""
    described = trainer.model.config()
    return RunConfig(
        data=config.data.model_copy(update={"preprocess": described["preprocess"]}),
        model=ModelConfig(**{k: described[k] for k in ("n_latents", "activation", "network")}),
        objective=[term.config() for term in trainer.terms.values()],
        corruption=trainer.corruption.config() if trainer.corruption else None,
        train=trainer.config,
    )


def provenance(trainer: Trainer, data: str) -> dict[str, Any]:
    """Where a model comes from; saved with it."""
    return {
        "data": data,
        "data_fingerprint": trainer.source.fingerprint,
        "rows": trainer.source.n_rows,
        "objective": [term.config() for term in trainer.terms.values()],
        "train": trainer.config.model_dump(mode="json"),
        "engine": trainer.engine_reason,
        "steps": trainer.state.step,
        "skipped": trainer.skipped,
        "summary": {k: v if math.isfinite(v) else None for k, v in trainer.summary.items()},
    }
