"""The rows, the clock and the scales that run.py and growth.py share."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from contenders import WITH_AUXK, Contender, Job, Start
from torch import Tensor

__all__ = ["SIZES", "Product", "Size", "Times", "conditions", "interleaved", "make_rows", "opened", "peak_memory"]

warnings.filterwarnings("ignore")
_GLIBC = platform.libc_ver()[0] == "glibc"


class Size(NamedTuple):
    d: int
    n_latents: int
    k: int
    batch: int
    n_batches: int


SIZES = {
    "small": Size(64, 256, 16, 256, 64),
    "mid": Size(384, 4096, 32, 2048, 32),
    "big": Size(768, 16384, 32, 2048, 16),
}


class Times(NamedTuple):
    """Seconds a step, a number per repetition."""

    cpu: list[float]
    wall: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.cpu)


class Product(Contender):
    """The one product that no encoder can do without, into a tensor that is there already: the scale for all others."""

    name = "torch.mm of the encoder alone"
    kinds = ()

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.W = torch.randn(job.d, job.n_latents)
        self.out = torch.empty(job.batch, job.n_latents)

    def step(self, x: Tensor) -> None:
        torch.mm(x, self.W, out=self.out)


def make_rows(d: int, n_rows: int, uncapped_l0: float = 16.0, noise: float = 0.05) -> Tensor:
    """(n_rows, d): ``s @ D + noise`` of 4 d features. Some fire on half of the rows, others by a power law on few.

    On average 13 to 14 fire, 16 if none were held to one half. Rows are scaled to a mean norm of sqrt(d).
    """
    g = torch.Generator().manual_seed(0)
    D = torch.nn.functional.normalize(torch.randn(4 * d, d, generator=g), dim=1)
    p = 1 / torch.arange(1, 4 * d + 1)
    p = (p * uncapped_l0 / p.sum()).clamp(max=0.5)
    parts = []
    for start in range(0, n_rows, 2048):
        n = min(2048, n_rows - start)
        s = (torch.rand(n, 4 * d, generator=g) < p) * (torch.randn(n, 4 * d, generator=g).abs() / 2 + 0.5)
        parts.append(s @ D + noise * torch.randn(n, d, generator=g))
    rows = torch.cat(parts)
    return rows * (d**0.5 / rows.norm(dim=1).mean())


def opened(peers: Iterable[type[Contender] | Callable[[], type[Contender]]], job: Job) -> list[Contender]:
    """Those that can do the job, after a first step; a line for each that cannot."""
    ready = []
    for find in peers:
        peer = None
        try:
            peer = find if isinstance(find, type) else find()
            if peer.kinds and job.kind not in peer.kinds:
                continue
            torch.manual_seed(0)
            contender = peer(job)
            contender.steps(1)
            ready.append(contender)
        except Exception as why:  # absent, of another version, or it refuses: the others are measured all the same
            print(f"  without {peer.name if peer else find}: {type(why).__name__}: {str(why)[:160]}", flush=True)
    return ready


def interleaved(
    verbs: dict[Any, tuple[Contender, Callable[[int], object]]], reps: int, seconds: float, start: Start | None = None
) -> dict[Any, Times]:
    """Everyone's ``verb(n)`` in turn, A B C A B C ..., and of that the time divided by n.

    n is so large that it takes ``seconds``, told from two first rounds that do not count. Before its turn everyone is
    set back to ``start``, and n is then at most 16, so that no latent that is dead comes back within a turn.
    """
    most = 16 if start is not None else 1_000_000
    times = {name: Times([], []) for name in verbs}
    counts = dict.fromkeys(verbs, 1)
    for rep in range(-2, reps):
        for name, (contender, verb) in verbs.items():
            if start is not None:
                contender.take(start)
            torch.set_num_threads(contender.job.threads)
            cpu, wall = time.process_time(), time.perf_counter()
            verb(counts[name])
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            if rep >= 0:
                times[name].cpu.append(cpu / counts[name])
                times[name].wall.append(wall / counts[name])
            else:  # the very first call of all may be slow, hence twice
                counts[name] = min(most, max(1, round(seconds * counts[name] / max(cpu, 1e-7))))
    return times


def one_arena() -> None:
    """Let threads share the allocator's main arena, as if there were one: fewfire's loop has a thread only here."""
    if _GLIBC:
        m_arena_max = -8
        ctypes.CDLL(None).mallopt(m_arena_max, 1)


def peak_memory(peer: type[Contender], job: Job, steps: int = 3) -> float:
    """MB that making the model and some steps add at their peak. In a process that has done nothing else (Linux)."""
    peer(Job(job.kind, 8, 32, 4, 16, job.rows[:64, :8].contiguous())).steps(1)  # imports, and the products' threads
    gc.collect()
    if _GLIBC:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not pass for memory that is not needed
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    contender = peer(job)
    if job.kind in WITH_AUXK:
        contender.take(Start.untrained(job))
    contender.steps(steps)
    return _status("VmHWM") - before


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def conditions(peers: Sequence[Contender], before: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers depend on, and the versions that were noted before."""
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":")[1].strip() for line in cpu.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {**before.get("versions", {}), **{p.package: _version(p.package) for p in peers}},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "?"
