"""One training step. ``autograd`` is the truth and takes any model; the others give the same result, faster.

An engine is one class in one file of this folder, listed in ENGINES from the fastest to the most general.
"""

from __future__ import annotations

from fewfire.contracts import Engine, Job
from fewfire.engines.autograd import AutogradEngine
from fewfire.engines.dense import DenseEngine
from fewfire.engines.sparse import FusedEngine, NativeEngine

__all__ = ["ENGINES", "AutogradEngine", "DenseEngine", "FusedEngine", "NativeEngine", "choose"]

ENGINES: tuple[type[Engine], ...] = (NativeEngine, FusedEngine, DenseEngine, AutogradEngine)


def choose(job: Job, name: str = "auto") -> tuple[Engine, str]:
    """The first engine that takes the job, and a sentence that says which, with what instructions, and why.

    Raises
    ------
    ValueError
        The engine asked for by name does not exist or refuses the job, or none takes it.
    """
    known = {engine.name: engine for engine in ENGINES}
    if name != "auto" and name not in known:
        raise ValueError(f"unknown engine {name!r}; choose from: auto, {', '.join(known)}")
    refusals: list[str] = []
    for engine in ENGINES if name == "auto" else (known[name],):
        refusal = engine.refuses(job)
        if refusal is None and name == "auto" and hasattr(engine, "too_slow"):
            refusal = engine.too_slow(job)
        if refusal is None:
            first = "takes any model" if engine is AutogradEngine else "the fastest for this model"
            why = "asked for" if name != "auto" else "; ".join(refusals) or first
            made = engine(job)
            return made, f"{getattr(made, 'said', engine.name)} ({why})"
        refusals.append(f"{engine.name}: {refusal}")
    if name != "auto":
        raise ValueError(f"the engine asked for does not take this job. {refusals[0]}; leave engine at auto")
    raise ValueError(f"no engine takes this job. {'; '.join(refusals)}")
