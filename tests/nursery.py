"""Processes that are cheap to start: a server imports torch once, and forks them."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs fork, SIGKILL and flock")

_context: Any = None


def start(job: Callable[..., Any], *args: Any) -> Any:
    """A running child, whose ``answer()`` is what the job sends or, at last, returns."""
    global _context
    if _context is None:
        _context = multiprocessing.get_context("forkserver")
        _context.set_forkserver_preload(
            ["pytest", "fewfire.runs", "fewfire.files", "fewfire.doctor", "fewfire.harvesting"]
        )
    ours, theirs = _context.Pipe()
    child = _context.Process(target=_run, args=(job, theirs, args), daemon=True)
    child.start()
    theirs.close()
    child.pipe = ours
    child.answer = lambda timeout=60: _answer(child, timeout)
    return child


def _run(job: Callable[..., Any], pipe: Any, args: tuple[Any, ...]) -> None:
    pipe.send(job(pipe.send, *args))


def _answer(child: Any, timeout: float) -> Any:
    if not child.pipe.poll(timeout):
        pytest.fail(f"no answer within {timeout} s")
    return child.pipe.recv()


def said(child: Any) -> list[Any]:
    """What a child that has ended had sent."""
    words = []
    try:
        while child.pipe.poll():
            words.append(child.pipe.recv())
    except (EOFError, ConnectionResetError):
        pass
    return words


@contextmanager
def children(*started: Any) -> Iterator[tuple[Any, ...]]:
    """Ended at the end, whatever happened."""
    try:
        yield started
    finally:
        for child in started:
            child.kill()
            child.join()
            child.pipe.close()
