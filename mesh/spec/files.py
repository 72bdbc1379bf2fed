"""Services and routes from files: JSON, YAML 1.2 or TOML; one per document, a list, or mappings `services:`, `routes:`.

Every fault of every file is reported at once, as `file:line: path: sentence` where the line is known.
"""

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mesh.spec.errors import SpecError
from mesh.spec.route import RouteSpec, is_route, parse_route
from mesh.spec.service import ServiceSpec, parse_spec
from mesh.spec.strict_json import DocumentError, parse_json

SUFFIXES = (".json", ".yaml", ".yml", ".toml")
MAX_FILE = 4 * 2**20
"""Bytes; a spec in the store is at most 512 KiB."""

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SpecSource:
    """A valid spec and the file that it came from."""

    spec: ServiceSpec | RouteSpec
    file: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a file. `lines` has the line of each dotted path, where the format tells."""

    value: Any
    lines: Mapping[str, int]


def read_specs(paths: Sequence[str], check: Callable[[ServiceSpec], object] | None = None) -> list[SpecSource]:
    """All services and routes in files, folders (their own files, not those of subfolders) and `-` (standard input).

    `check` may find more faults in a service, as a `SpecError`.

    Raises:
        SpecError: with every fault of every file.
    """
    found: dict[tuple[str, str], SpecSource] = {}
    errors: list[str] = []
    for path in paths:
        try:
            files = _files(path)
        except SpecError as error:
            errors += error.errors
            continue
        for file in files:
            for spec in _specs(file, check, errors):
                kind = "route" if isinstance(spec, RouteSpec) else "service"
                if (kind, spec.name) in found:
                    errors.append(f"{file}: {kind} {spec.name!r} is already in {found[kind, spec.name].file}")
                found[kind, spec.name] = SpecSource(spec, file)
    if errors:
        raise SpecError(errors)
    return list(found.values())


def read_document(file: str, read: Callable[[object], _T], longest: int = MAX_FILE) -> _T:
    """What `read` makes of the one document of a JSON, YAML or TOML file, or of standard input (`-`).

    Raises:
        SpecError: if the file cannot be read, is no document, or is several; with the faults that `read` finds, as
            `file:line: path: sentence`, the line where it is known.
    """
    shown = _shown(file)
    try:
        documents = parse_documents(_read(file, longest), Path(file).suffix)
        if len(documents) != 1:
            raise DocumentError(f"must hold one document, holds {len(documents)}")
    except DocumentError as error:
        raise SpecError([f"{shown}{f':{error.line}' if error.line else ''}: {error.sentence}"]) from None
    document = documents[0]
    try:
        return read(document.value)
    except SpecError as error:
        raise SpecError([_located(shown, "", fault, document.lines) for fault in error.errors]) from None


def _shown(file: str) -> str:
    return "standard input" if file == "-" else file


def _files(path: str) -> list[str]:
    folder = Path(path)
    if path == "-" or not folder.is_dir():
        return [path]
    files = sorted(str(file) for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not files:
        raise SpecError([f"{path}: the folder holds no {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file"])
    return files


def _specs(
    file: str, check: Callable[[ServiceSpec], object] | None, errors: list[str]
) -> Iterator[ServiceSpec | RouteSpec]:
    """The valid specs of one file; what is wrong goes into `errors`."""
    shown = _shown(file)
    try:
        documents = parse_documents(_read(file, MAX_FILE), Path(file).suffix)
    except DocumentError as error:
        errors.append(f"{shown}{f':{error.line}' if error.line else ''}: {error.sentence}")
        return
    count = 0
    for document in documents:
        for prefix, name, body in _bodies(document.value):
            count += 1
            try:
                spec = _parse(prefix, body, name, check)
            except SpecError as error:
                errors += [_located(shown, prefix, sentence, document.lines) for sentence in error.errors]
            else:
                yield spec
    if not count:
        errors.append(f"{shown}: holds no service or route")


def _parse(
    path: str, body: Any, name: str | None, check: Callable[[ServiceSpec], object] | None
) -> ServiceSpec | RouteSpec:
    kind = path.partition(".")[0]
    if kind == "routes" or (kind != "services" and is_route(body)):
        return parse_route(body, name)
    spec = parse_spec(body, name)
    if check:
        check(spec)
    return spec


def _bodies(value: Any) -> Iterator[tuple[str, str | None, Any]]:
    """Path, name (if the key gives it) and body of each service and route in a document."""
    if isinstance(value, dict) and value and value.keys() <= {"services", "routes"}:
        for kind, bodies in value.items():
            yield from _named(bodies, kind) if isinstance(bodies, dict) else _listed(bodies, f"{kind}.")
    elif value is not None:
        yield from _listed(value, "")


def _named(bodies: dict[str, Any], kind: str) -> Iterator[tuple[str, str | None, Any]]:
    for name, body in bodies.items():
        yield f"{kind}.{name}", str(name), body


def _listed(value: Any, prefix: str) -> Iterator[tuple[str, str | None, Any]]:
    if isinstance(value, list):
        for number, body in enumerate(value):
            yield f"{prefix}{number}", None, body
    elif value is not None:
        yield prefix.rstrip("."), None, value


def _located(file: str, prefix: str, sentence: str, lines: Mapping[str, int]) -> str:
    path, colon, rest = sentence.partition(": ")
    if not colon or " " in path:  # about the whole document
        path, rest = "", sentence
    full = ".".join(part for part in (prefix, path) if part)
    line = _line(full, lines)
    return f"{file}{f':{line}' if line else ''}: {f'{full}: ' if full else ''}{rest}"


def _line(path: str, lines: Mapping[str, int]) -> int | None:
    """The line of `path`, or of what it is in."""
    while path not in lines and path:
        path = path.rpartition(".")[0]
    return lines.get(path)


def _read(file: str, longest: int) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(longest + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(longest + 1)
    except OSError as error:
        raise DocumentError(f"cannot read it: {error.strerror}") from None
    if len(data) > longest:
        raise DocumentError(f"is larger than {longest // 2**20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError("is not text in UTF-8", data.count(b"\n", 0, error.start) + 1) from None


def parse_documents(text: str, suffix: str) -> list[Document]:
    """The documents in `text`; the format is told by the suffix, or else by the text itself.

    Raises:
        DocumentError: with the line.
    """
    try:
        if suffix == ".json":
            return [Document(parse_json(text), {})]
        if suffix == ".toml" or (suffix not in SUFFIXES and _is_toml(text)):
            return [Document(_parse_toml(text), {})]
        if suffix not in SUFFIXES and text.lstrip()[:1] == "{":
            return [Document(parse_json(text), {})]
        from mesh.spec.yaml12 import parse_yaml

        return [Document(value, lines) for value, lines in parse_yaml(text)]
    except RecursionError:
        raise DocumentError("is nested too deeply") from None


def _is_toml(text: str) -> bool:
    try:
        return bool(tomllib.loads(text))
    except ValueError:
        return False


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise DocumentError(f"not TOML: {error}") from None
