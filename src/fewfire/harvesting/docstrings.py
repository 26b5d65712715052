"""Real English that every installation has: what the documentation of its packages says, sentence by sentence."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

__all__ = ["docstrings"]

PACKAGES = ("sklearn", "scipy", "numpy", "matplotlib")
"""which fewfire needs anyway"""
MAX_SOURCE_BYTES = 1 << 20
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
NO_PROSE = re.compile(r"^\s*(>>>|\.\.|[-=~^*#|+]|\w+ : |:)|::|\\|\$", re.M)
"""examples, directives, lists, tables, parameters, formulas"""
MARKUP = re.compile(r":[\w.:+-]+:`~?([^`<]*)(?:<[^`]*>)?`|``?([^`]*)``?_{0,2}|\*\*?([^*]+)\*\*?|\[\d+\]_")
WORDS = range(8, 61)


def docstrings() -> Iterator[tuple[str, str]]:
    """(sentence, the part of the package it documents, such as "scipy.stats"), each sentence once.

    Sources are parsed, never run; of their docstrings, paragraphs of prose are taken. The order is that of the
    sentences' hashes: one installation always gives the same, and the first thousand are a fair sample.
    """
    found: dict[str, str] = {}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in map(Path, spec.submodule_search_locations or () if spec is not None else ()):
            for path in sorted(folder.rglob("*.py")):
                inner = path.relative_to(folder)
                if "test" not in inner.as_posix() and path.stat().st_size <= MAX_SOURCE_BYTES:
                    part = ".".join((package, inner.parts[0])) if len(inner.parts) > 1 else package
                    for sentence in _sentences(path):
                        found.setdefault(sentence, part)
    return iter(sorted(found.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest()))


def _sentences(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (words := ast.get_docstring(node)):
            for paragraph in re.split(r"\n\s*\n", words):
                yield from _of_paragraph(textwrap.dedent(paragraph))


def _of_paragraph(paragraph: str) -> Iterator[str]:
    if NO_PROSE.search(paragraph):
        return
    plain = MARKUP.sub(lambda m: next((g for g in m.groups() if g), ""), " ".join(paragraph.split()))
    for sentence in SENTENCE.split(plain):
        letters = sum(c.isalpha() or c == " " for c in sentence)
        is_prose = len(sentence.split()) in WORDS and letters >= 0.9 * len(sentence)
        if is_prose and sentence[0].isupper() and sentence[-1] in ".!?":
            yield sentence
