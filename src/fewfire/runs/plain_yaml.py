"""YAML without surprises, from whomever it comes.

What stands in a configuration is what it looks like. Only ``true`` and ``false`` are booleans, so that a column may be
called ``no`` or ``on``; a number is a number as anybody writes it, ``1e-3`` included; everything else is text, such as
12:30:00, 2024-01-31, 007 and 1_000, of which YAML 1.1 makes seconds, a date, an octal and a thousand. Anchors and
aliases work; tags, merge keys (``<<``), keys that are not text and a key twice are refused, with the line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.parser import Parser
from yaml.reader import Reader, ReaderError
from yaml.resolver import BaseResolver
from yaml.scanner import Scanner

from fewfire.disk import one_line

__all__ = ["dump_yaml", "parse_yaml"]

MAX_CHARACTERS = 128 << 10
"""A hundred times a usual configuration. The parser may take three seconds for a megabyte."""
MAX_VALUES = 10_000
"""aliases written out: ten lines of aliases of aliases could stand for ten billion values"""
MAX_ALIASES = 100
MAX_DEPTH = 32

_NULL = "tag:yaml.org,2002:null"
_BOOL = "tag:yaml.org,2002:bool"
_INT = "tag:yaml.org,2002:int"
_FLOAT = "tag:yaml.org,2002:float"
_STR = "tag:yaml.org,2002:str"
_LIST = "tag:yaml.org,2002:seq"
_DICT = "tag:yaml.org,2002:map"

_PLAIN = {
    _NULL: ("~|null|Null|NULL|", "~nN"),
    _BOOL: ("true|True|TRUE|false|False|FALSE", "tTfF"),
    _INT: (r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    _FLOAT: (
        r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""How what is not text looks, and the characters it starts with. The first that matches counts."""


def parse_yaml(text: str) -> Any:
    """What a YAML text holds: dictionaries with text as keys, lists, text, numbers, booleans and None.

    Raises
    ------
    ValueError
        It is not YAML, holds something that is refused, or is beyond the limits above. One line that says where.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"expected at most {MAX_CHARACTERS:,} characters, got {len(text):,}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.value_of(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ValueError(where + one_line(", ".join(filter(None, (error.context, error.problem))))) from None
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(f"line {line}: a character that text does not have, {chr(error.character)!a}") from None
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from None


def dump_yaml(data: Any) -> str:
    """Plain values as YAML, in their order; text that any reader might take for something else is quoted."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


class _Loader(Reader, Scanner, Parser, Composer, BaseResolver):
    """PyYAML's reading of the grammar, without its ideas of what the words mean."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)
        Composer.__init__(self)
        BaseResolver.__init__(self)
        self.depth = self.n_aliases = self.n_values = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node and what is in it; too much of it is refused before it is read."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.n_aliases += self.check_event(yaml.AliasEvent)
        self.n_values += 1
        self.depth += 1
        if self.n_aliases > MAX_ALIASES:
            raise _refusal(f"more than {MAX_ALIASES} aliases", mark)
        self._check(mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def value_of(self, node: yaml.Node, depth: int = 1) -> Any:
        """What a node stands for; the node of an alias is another's, and its content counts once more."""
        self.n_values, self.depth = (1 if depth == 1 else self.n_values + 1), depth
        self._check(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _LIST:
            return [self.value_of(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == _DICT:
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                key = _key(key_node)
                if key in found:
                    raise _refusal(f"the key {one_line(key, 60)!r} a second time", key_node.start_mark)
                found[key] = self.value_of(value_node, depth + 1)
            return found
        raise _strange_tag(node)

    def _check(self, mark: yaml.Mark) -> None:
        if self.depth > MAX_DEPTH:
            raise _refusal(f"nested deeper than {MAX_DEPTH} levels", mark)
        if self.n_values > MAX_VALUES:
            raise _refusal(f"more than {MAX_VALUES:,} values", mark)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_look, _first) in _PLAIN.items():
    _pattern = re.compile(rf"(?:{_look})\Z", re.ASCII)
    _Loader.add_implicit_resolver(_tag, _pattern, [*_first, ""] if _tag == _NULL else list(_first))
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


_READ: dict[str, Callable[[str], Any]] = {
    _STR: str,
    _INT: int,
    _FLOAT: lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    _BOOL: {"true": True, "false": False}.__getitem__,
    _NULL: {"": None, "~": None, "null": None}.__getitem__,
}


def _scalar(node: yaml.ScalarNode) -> Any:
    if node.tag not in _READ:
        raise _strange_tag(node)
    try:
        return _READ[node.tag](node.value if node.tag == _STR else node.value.lower())
    except (KeyError, ValueError):  # !!int, and then no number; or a number of five thousand digits
        kind = node.tag.rpartition(":")[2]
        raise _refusal(f"expected {kind}, got {one_line(node.value, 40)!r}", node.start_mark) from None


def _key(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag != _STR:
        raise _refusal("a key that is not text; put it in quotes", node.start_mark)
    if node.value == "<<":
        raise _refusal("merge keys (<<) are not supported; write the settings out", node.start_mark)
    return str(node.value)


def _strange_tag(node: yaml.Node) -> yaml.MarkedYAMLError:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    return _refusal(f"the tag {one_line(tag, 60)!r}; tags are not supported", node.start_mark)


def _refusal(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
