"""YAML 1.2 (core schema) with line numbers: `on` and `yes` are text, a key stands once, aliases are bounded.

PyYAML reads YAML 1.1, where `on` is true; its scanner and composer are right for 1.2, so that only the
meaning of plain scalars (YAML 1.2.2, 10.3.2) and the building of values are our own.
"""

import math
import re
from typing import Any

import yaml

from mesh.spec.strict_json import DocumentError

MAX_VALUES = 100_000
"""In one document, or one for each of its characters, if that is more: only aliases can make more than those."""
MAX_DEPTH = 100

_TAG = "tag:yaml.org,2002:"
_RESOLVERS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
     "-+.0123456789"),
)  # fmt: skip


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}


for _kind, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(
        _TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), ["" if char == "\0" else char for char in _first]
    )


def parse_yaml(text: str) -> list[tuple[Any, dict[str, int]]]:
    """Each document's value, and the line of each dotted path in it.

    Raises:
        DocumentError: with the line.
        RecursionError: if it is nested too deeply.
    """
    try:
        roots = list(yaml.compose_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        problem = ", ".join(part for part in (error.context, error.problem) if part)
        mark = error.problem_mark or error.context_mark
        raise DocumentError(f"not YAML: {problem}", mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise DocumentError(f"not YAML: {str(error).splitlines()[0]}") from None
    documents = []
    for root in roots:
        builder = _Builder(max(MAX_VALUES, len(text)))
        documents.append((builder.value(root, "", 0), builder.lines))
    return documents


class _Builder:
    """Builds the value of one document from its nodes: of `most` values at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.lines: dict[str, int] = {}
        self._built = 0

    def value(self, node: yaml.Node, path: str, depth: int) -> Any:
        line = node.start_mark.line + 1
        self._built += 1
        if self._built > self._most:
            raise DocumentError(f"holds more than {self._most} values (aliases count each time)", line)
        if depth > MAX_DEPTH:
            raise DocumentError("is nested too deeply", line)
        self.lines.setdefault(path, line)
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, line)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, _join(path, str(index)), depth + 1) for index, item in enumerate(node.value)]
        return self._mapping(node, path, depth)

    def _mapping(self, node: Any, path: str, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise DocumentError("a key must be a word", line)
            key = key_node.value
            if key in found:
                raise DocumentError(f"the key {key!r} is there twice", line)
            inner = _join(path, key)
            self.lines[inner] = line
            found[key] = self.value(value_node, inner, depth + 1)
        return found


def _join(path: str, step: str) -> str:
    return f"{path}.{step}" if path else step


def _scalar(node: yaml.ScalarNode, line: int) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool":
            return text.lower() == "true"
        case "int":
            try:
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            except ValueError:
                raise DocumentError(f"not a number: {text[:40]!r}", line) from None
        case "float":
            return _float(text.lower())
        case tag:
            raise DocumentError(f"the tag {tag!r} is not supported", line)


def _float(text: str) -> float:
    if text.endswith("nan"):
        return math.nan
    return float(text.replace(".inf", "inf"))
