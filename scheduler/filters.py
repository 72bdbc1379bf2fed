"""The constraint language: `zone == eu-1`, `disk in [ssd, nvme]`, `kernel version >= 5.10`, …

A constraint is parsed once and then asked about many nodes. A missing attribute makes `!=` and `not in`
true and everything else false. Numbers compare as numbers (what is no number is false), versions by
their dotted numbers, and regular expressions are refused where they could backtrack without end.
"""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from re import _parser  # type: ignore[attr-defined]  # the only way to see a pattern's structure
from typing import Any

from mesh import units

_CONSTRAINT = re.compile(
    r"\s*(?P<label>[A-Za-z0-9_][A-Za-z0-9_./-]*?)\s*"
    r"(?:(?P<word>(?<=\s)(?:not\s+in|in|exists|version)(?![A-Za-z0-9_./-]))|(?P<sign>==|!=|=~|<=|>=|<|>))"
    r"\s*(?P<value>.*?)\s*"
)
_VERSION_OPERAND = re.compile(r"(<=|>=|==|<|>)\s*(['\"]?)v?(\d+(?:\.\d+)*)\2")
_VERSION = re.compile(r"v?(\d+(?:\.\d+)*)")
_ANOTHER = re.compile(r"==|!=|=~|&&|\|\||^=")
"""What looks as if a value were a second condition, or an operator had been meant that there is not."""
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq,
}  # fmt: skip

MAX_PATTERN = 256
MAX_SEARCHED = 128
"""Longer values match no regular expression: this bounds the work that three open repeats can make."""
MAX_OPEN_REPEATS = 3
MAX_CHOICES = 8


class ConstraintError(ValueError):
    """A constraint that cannot be used; the message quotes it."""


@dataclass(frozen=True, slots=True)
class Constraint:
    """One condition on a node's attributes and labels."""

    text: str
    label: str
    test: Callable[[str | None], bool]
    only: frozenset[str] | None = None
    """The values that it allows, if these can be told (`==`, `in`)."""
    bound: float | None = None
    """What it compares numbers with, if it does."""

    def allows(self, attributes: Mapping[str, str]) -> bool:
        return self.test(attributes.get(self.label))

    def why_not(self, attributes: Mapping[str, str]) -> str:
        """The sentence for a node that it refuses."""
        found = attributes.get(self.label)
        if found is None:
            return f"has no {self.label}, wants {self.text}"
        unfit = ", which is no number" if self.bound is not None and _number(found) is None else ""
        return f"{self.label} is {found}{unfit}, wants {self.text}"


def parse_constraint(text: str) -> Constraint:
    """Reads one constraint.

    Raises:
        ConstraintError: with what is wrong.
    """
    match = _CONSTRAINT.fullmatch(text)
    if match is None:
        raise ConstraintError(
            f"{text!r} is no constraint: write `label == value`, with one of "
            "==, !=, in, not in, exists, <, <=, >, >=, =~, version <, version <=, version >, version >=, version =="
        )
    sign = match["sign"] or " ".join(match["word"].split())
    value = match["value"]
    try:
        test = _test(sign, value)
    except ValueError as error:
        raise ConstraintError(f"{text!r}: {error}") from None
    bound = _number(_unquoted(value)) if sign in ("<", "<=", ">", ">=") else None
    return Constraint(text.strip(), match["label"], test, _only(sign, value), bound)


def _only(sign: str, value: str) -> frozenset[str] | None:
    if sign == "==":
        return frozenset([_unquoted(value)])
    return _choices(value) if sign == "in" else None


def contradictions(constraints: Sequence[Constraint]) -> list[str]:
    """Rules that no node can follow together, each with its path: every value that one allows, others refuse."""
    errors: list[str] = []
    for number, wanted in enumerate(constraints):
        others = [other for other in constraints if other.label == wanted.label and other is not wanted
                  and (wanted.only is not None or (wanted.bound is not None and other.bound is not None))]  # fmt: skip
        values = [value for value in _witnesses(wanted, others) if wanted.test(value)]
        if not others or any(all(one.test(value) for one in others) for value in values):
            continue
        against = next((f" contradicts {other.text!r}" for other in others
                        if not any(other.test(value) for value in values)), ", with the other rules,")  # fmt: skip
        errors.append(f"placement.constraints.{number}: {wanted.text!r}{against}: no node can have both")
    return errors


def _witnesses(wanted: Constraint, others: Sequence[Constraint]) -> Iterable[str]:
    """If any value passes all of these, one of them does: those that are named, or a number in each gap of bounds."""
    if wanted.only is not None:
        return wanted.only
    bounds = sorted({one.bound for one in (wanted, *others) if one.bound is not None})
    between = [(low + high) / 2 for low, high in pairwise(bounds)]
    return [repr(number) for number in (*bounds, *between, *(bound + step for bound in bounds for step in (-1, 1)))]


def _test(sign: str, value: str) -> Callable[[str | None], bool]:
    if sign == "exists":
        if value:
            raise ValueError(f"exists takes no value, got {value!r}")
        return lambda found: found is not None
    if not value:
        raise ValueError(f"needs a value after {sign}")
    match sign:
        case "==":
            wanted = _one(value)
            return lambda found: found == wanted
        case "!=":
            wanted = _one(value)
            return lambda found: found != wanted
        case "in":
            choices = _choices(value)
            return lambda found: found in choices
        case "not in":
            choices = _choices(value)
            return lambda found: found not in choices
        case "=~":
            search = _bounded_pattern(_unquoted(value)).search
            return lambda found: found is not None and len(found) <= MAX_SEARCHED and search(found) is not None
        case "version":
            return _version_test(value)
        case _:
            return _number_test(sign, _unquoted(value))


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'" else value


def _one(value: str) -> str:
    """The value of `==` and `!=`."""
    if value[0] not in "\"'" and _ANOTHER.search(value):
        raise ValueError(f"{value!r} is no value: each condition is a constraint of its own (or put it in quotes)")
    return _unquoted(value)


def _choices(value: str) -> frozenset[str]:
    if value.startswith("[") != value.endswith("]"):
        raise ValueError("a bracket is missing")
    inner = value[1:-1] if value.startswith("[") else value
    choices = [_unquoted(choice.strip()) for choice in inner.split(",")]
    if not all(choices):
        raise ValueError("needs values with commas between them")
    return frozenset(choices)


def _number_test(sign: str, value: str) -> Callable[[str | None], bool]:
    compare = _COMPARE[sign]
    wanted = _number(value)
    if wanted is None:
        raise ValueError(f"{sign} compares numbers, {value!r} is none (for versions write: version {sign} {value})")

    def test(found: str | None) -> bool:
        number = _number(found)
        return number is not None and compare(number, wanted)

    return test


def _number(text: str | None) -> float | None:
    """A number, also of bytes (`8Gi`) or of cores (`500m`)."""
    if not text or text[0] not in "0123456789+-.":
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return units.parse_cpu(text) / 1000 if text.endswith("m") else float(units.parse_memory(text))
    except ValueError:
        return None


def _version_test(value: str) -> Callable[[str | None], bool]:
    operand = _VERSION_OPERAND.fullmatch(value)
    if operand is None:
        raise ValueError(f"version needs <, <=, >, >= or == and dotted numbers, got {value!r}")
    compare, wanted = _COMPARE[operand[1]], _dotted(operand[3])

    def test(found: str | None) -> bool:
        match = _VERSION.match(found) if found is not None else None
        return match is not None and compare(_dotted(match[1]), wanted)

    return test


def _dotted(version: str) -> tuple[int, ...]:
    """5.10.0 → (5, 10): zeros at the end do not count."""
    numbers = [int(part[:18]) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _bounded_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled pattern, if no value can make it backtrack without end.

    Refused: a repeat or a choice inside a repeat (`(a+)+`, `(a|b)*`), back-references and look-around, and more
    than a few open repeats in a row. What remains costs at most a small power of a bounded value's length.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern may have at most {MAX_PATTERN} characters")
    try:
        with warnings.catch_warnings(action="error"):  # what may mean something else in a later Python
            tree = _parser.parse(pattern)
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        raise ValueError(f"not a regular expression: {error}") from None
    repeats, choices = _variable_parts(tree, repeated=False)
    if repeats > MAX_OPEN_REPEATS or choices > MAX_CHOICES:
        raise ValueError(
            f"it could backtrack for very long: at most {MAX_OPEN_REPEATS} open repeats and {MAX_CHOICES} choices"
        )
    return compiled


def _variable_parts(tree: Any, *, repeated: bool) -> tuple[int, int]:
    """How many repeats and how many small choices (`?`, `|`) a pattern has."""
    repeats = choices = 0
    for code, argument in tree:
        kind = str(code)
        children: list[Any] = []
        inside = repeated
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            least, most, body = argument
            most = int(most)
            if least != most:
                if repeated:
                    raise ValueError("a repeat inside a repeat could backtrack without end")
                if most == 1:
                    choices += 1
                else:
                    repeats += 1
            children, inside = [body], repeated or most > 1
        elif kind == "BRANCH":
            if repeated:
                raise ValueError("a choice inside a repeat could backtrack without end")
            children = argument[1]
            choices += len(children) - 1
        elif kind == "SUBPATTERN":
            children = [argument[-1]]
        elif kind == "ATOMIC_GROUP":
            children = [argument]
        elif kind in ("GROUPREF", "GROUPREF_EXISTS", "ASSERT", "ASSERT_NOT"):
            raise ValueError("back-references and look-around are not supported")
        for child in children:
            more_repeats, more_choices = _variable_parts(child, repeated=inside)
            repeats, choices = repeats + more_repeats, choices + more_choices
    return repeats, choices
