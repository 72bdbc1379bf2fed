"""What is wrong with a spec, in sentences: `path: what is expected, what was given`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.suggestion import suggestion

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails


class SpecError(ValueError):
    """A spec that cannot be used. `errors` holds one sentence for each fault, with its path."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


class DocumentError(ValueError):
    """A file that is no document; begins with `:line: ` or `: `, to follow the file's name."""

    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(f":{line}: {sentence}" if line else f": {sentence}")


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Pydantic's errors as `path: sentence`, with a suggestion for an unknown field."""
    found: dict[str, None] = {}
    for detail in error.errors(include_url=False):
        for line in _sentence(detail, model).splitlines():
            found.setdefault(line)
    return list(found)


def _sentence(detail: ErrorDetails, model: type[BaseModel]) -> str:
    parts = [str(part) for part in detail["loc"] if not _is_noise(part)]
    path = ".".join(parts).replace("resources.counts.", "resources.")
    given = detail.get("input")
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            known = _fields_at(model, parts[:-1])
            return f"{path}: unknown field{suggestion(parts[-1], known)}"
        case "missing":
            return f"{path}: is required"
        case "greater_than_equal" | "less_than_equal" if parts and parts[-1] in (
            "port",
            "target",
            "host_port",
        ):
            return f"{path}: must be 1..65535, got {given}"
        case "greater_than_equal":
            return f"{path}: must be {context['ge']} or more, got {given}"
        case "less_than_equal":
            return f"{path}: must be {context['le']} or less, got {given}"
        case "value_error":
            text = str(context["error"])
            return text if not path else "\n".join(f"{path}: {line}" for line in text.splitlines())
        case "literal_error":
            return f"{path}: must be {context['expected']}, got {given!r}"
        case "int_type" | "int_parsing" | "int_from_float":
            return f"{path}: must be a whole number, got {given!r}"
        case "string_type":
            return f"{path}: must be text, got {given!r}"
        case "bool_type" | "bool_parsing":
            return f"{path}: must be true or false, got {given!r}"
        case "list_type":
            return f"{path}: must be a list, got {given!r}"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{path}: must be an object, got {given!r}"
        case "string_pattern_mismatch":
            return f"{path}: must match {context['pattern']}, got {given!r}"
        case _:
            return f"{path}: {detail['msg'][:1].lower()}{detail['msg'][1:]}, got {given!r}"


_NOISE = {"str", "int", "SecretRef", "ConfigRef", "HashBalance"}


def _is_noise(part: int | str) -> bool:
    """The names of union branches, which pydantic puts into the path, say nothing to an operator."""
    return isinstance(part, str) and (part in _NOISE or part.startswith(("literal[", "constrained-", "function-")))


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """The fields of the part of the spec at `path`."""
    here: type[BaseModel] | None = model
    for step in path:
        field = here.model_fields.get(step) if here else None
        if field is not None:
            here = _model_in(field.annotation)
        # a key of a mapping or an index of a list: stay with the value's model
    return list(here.model_fields) if here else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if hasattr(annotation, "model_fields"):
        model: type[BaseModel] = annotation
        return model
    for inner in getattr(annotation, "__args__", ()):
        if found := _model_in(inner):
            return found
    return None
