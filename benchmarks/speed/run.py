"""Peers and fewfire, one after the other in turn, in one process: seconds a step, to encode, to decode; peak memory.

    python benchmarks/speed/run.py [--sizes small mid big] [--kinds topk] [--what step encode decode memory]
                                   [--reps 9] [--threads 1] [--only NAME ...] [--out results.json]

README.md beside this file says what is inside the measured time of whom, how everyone starts, and what is unequal.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import harness
import torch
from contenders import DEAD, KINDS, PEERS, WITH_AUXK, Contender, Job, Start, load
from contenders import fewfire as few
from harness import SIZES, Product, Times, conditions, interleaved, make_rows, opened, peak_memory

WHAT = ("step", "encode", "decode", "memory")


def main() -> None:
    args = arguments()
    harness.one_arena()
    if args.memory_of:
        print(memory_here(args))
        return
    results: list[dict[str, Any]] = []
    machine: dict[str, Any] = {}
    for size in args.sizes:
        for kind in args.kinds:
            print(f"\n{size}, {kind}: {SIZES[size]._asdict()}", flush=True)
            contenders = make(args, size, kind) if args.what != ["memory"] else []
            try:
                machine = conditions(contenders, machine)
                found = measure(args, kind, contenders) if contenders else []
                found += memory(args, size, kind) if "memory" in args.what else []
                results += [{"size": size, "kind": kind, **one} for one in found]
            finally:
                for contender in contenders:
                    contender.close()
            if args.out:
                args.out.write_text(json.dumps({"conditions": machine, "results": results}, indent=1))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["topk"])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--reps", type=int, default=9, help="rounds that count")
    parser.add_argument(
        "--seconds", type=float, default=0.05, help="a turn is as many steps as take so long; at least 1"
    )
    parser.add_argument("--train", type=int, default=300, help="steps of fewfire before all continue from its weights")
    parser.add_argument("--dead", type=float, default=DEAD, help="share of dead latents; 0: every AuxK idles")
    parser.add_argument("--threads", nargs="+", type=int, default=[1], help="1 2: everyone with one and with two")
    parser.add_argument("--engines", nargs="+", default=["auto"], help="of fewfire; auto, and others by name")
    parser.add_argument("--only", nargs="+", choices=["fewfire", *PEERS], default=["fewfire", *PEERS])
    parser.add_argument("--out", type=Path, help="results as JSON, for table.py")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # the child that measures one contender
    return parser.parse_args()


def finders(args: argparse.Namespace) -> dict[str, Any]:
    """By the name on the command line, what gives the class; importing a library is left to its constructor."""
    found: dict[str, Any] = {}
    if "fewfire" in args.only:
        found |= {f"fewfire:{engine}": partial(few.engine, engine) for engine in args.engines}
    return found | {name: partial(load, name) for name in PEERS if name in args.only}


def job_for(size: str, kind: str, threads: int = 1) -> Job:
    d, n_latents, k, batch, n_batches = SIZES[size]
    return Job(kind, d, n_latents, k, batch, make_rows(d, batch * n_batches), threads)


def make(args: argparse.Namespace, size: str, kind: str) -> list[Contender]:
    job, contenders = job_for(size, kind), []
    for threads in args.threads:
        torch.set_num_threads(threads)
        job = replace(job, threads=threads)
        contenders += [Product(job), *opened(finders(args).values(), job)]
    return contenders


def measure(args: argparse.Namespace, kind: str, contenders: list[Contender]) -> list[dict[str, Any]]:
    start = common_start(kind, contenders, args.train, args.dead)
    found = []
    if "step" in args.what:
        verbs = {c: (c, c.steps) for c in contenders}
        found += report("step", interleaved(verbs, args.reps, args.seconds, start))
    able = [c for c in contenders if not isinstance(c, Product)]
    for c in able:
        c.steps(2)  # thresholds of those that have not trained here
    x = able[0].job.batch_at(0)
    with torch.no_grad():
        if "encode" in args.what:
            verbs = {c: (c, repeated(c.encode, x)) for c in able}
            found += report("encode", interleaved(verbs, args.reps, args.seconds))
        if "decode" in args.what:
            verbs = {c: (c, repeated(c.decode, c.encode(x))) for c in able}
            found += report("decode", interleaved(verbs, args.reps, args.seconds))
    return found


def common_start(kind: str, contenders: list[Contender], steps: int, dead: float) -> Start | None:
    """Weights that the first fewfire has learned, some of the latents dead; None where nobody has an AuxK."""
    few_ones = [c for c in contenders if isinstance(c, few.Peer)]
    if few_ones:
        few_ones[0].steps(steps)
        print(f"  {few_ones[0].name} has trained {steps} steps: {few_ones[0].note}", flush=True)
    if kind not in WITH_AUXK:
        for c in few_ones[1:]:
            c.steps(steps)
        return None
    return few_ones[0].start(dead) if few_ones else Start.untrained(contenders[0].job)


def repeated(verb: Any, given: Any) -> Any:
    def times(n: int) -> None:
        for _ in range(n):
            verb(given)

    return times


def report(what: str, times: dict[Contender, Times]) -> list[dict[str, Any]]:
    """As lines on the screen, and for the file."""
    found = []
    for c, t in sorted(times.items(), key=lambda item: item[1].median):
        wall, n_dead = sorted(t.wall)[len(t.wall) // 2], c.n_dead() if what == "step" else None
        dead = f"  {n_dead} dead" if n_dead is not None and c.job.kind in WITH_AUXK else ""
        line = f"{c.name:30s} {c.job.threads} thread  cpu {t.median * 1e3:9.3f} ms  wall {wall * 1e3:9.3f} ms"
        print(f"  {what:7s} {line}  {c.job.batch / wall:11,.0f} rows/s{dead}", flush=True)
        one = {"what": what, "contender": c.name, "threads": c.job.threads, "rows": c.job.batch, "note": c.note}
        found.append({**one, "n_dead": n_dead, "cpu": t.cpu, "wall": t.wall})
    return found


def memory(args: argparse.Namespace, size: str, kind: str) -> list[dict[str, Any]]:
    """Each in a process of its own."""
    found = []
    for name in finders(args):
        here = [sys.executable, __file__, "--memory-of", name, "--sizes", size, "--kinds", kind]
        child = subprocess.run(here, capture_output=True, text=True)
        last = child.stdout.strip().rsplit("\n", 1)[-1]
        if child.returncode or not last.startswith("{"):
            why = child.stderr.strip().rsplit("\n", 1)[-1] or last
            print(f"  memory  without {name}: {why[:160]}", flush=True)
            continue
        one = json.loads(last)
        if not one:  # it has nothing of this kind
            continue
        print(f"  memory  {one['contender']:30s} {one['mb']:9.0f} MB", flush=True)
        found.append({"what": "memory", "threads": 1, **one})
    return found


def memory_here(args: argparse.Namespace) -> str:
    name, _, engine = args.memory_of.partition(":")
    peer = few.engine(engine) if name == "fewfire" else load(name)
    if args.kinds[0] not in peer.kinds:
        return "{}"
    return json.dumps({"contender": peer.name, "mb": peak_memory(peer, job_for(args.sizes[0], args.kinds[0]))})


if __name__ == "__main__":
    main()
