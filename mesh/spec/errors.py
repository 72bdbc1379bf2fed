"""What is wrong with a spec, in sentences: `path: what is expected, what was given`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

from mesh.suggestion import suggestion
from mesh.units import shown

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic_core import ErrorDetails

MAX_ERRORS = 50
"""Sentences kept; what follows is counted."""

_MAX_PATH = 120


class SpecError(ValueError):
    """A spec that cannot be used. `errors` holds one sentence for each fault, with its path."""

    def __init__(self, errors: list[str]) -> None:
        if len(errors) > MAX_ERRORS:
            errors = [*errors[:MAX_ERRORS], f"and {len(errors) - MAX_ERRORS} more errors"]
        super().__init__("\n".join(errors))
        self.errors = errors


def sentences(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Pydantic's errors as `path: sentence`, with a suggestion for an unknown field."""
    details = error.errors(include_url=False)
    found = [_sentence(detail, model) for detail in details[: MAX_ERRORS + 1]]
    return list(dict.fromkeys(found)) + ["…"] * (len(details) - len(found))


def _sentence(detail: ErrorDetails, model: type[BaseModel]) -> str:
    # pydantic's way to what an operator wrote elsewhere, as a key, or as one of several kinds
    steps = [str(step) for step in detail["loc"] if step not in ("counts", "[key]", "[text]", "[object]")]
    given, context = detail["input"], detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            sentence = f"unknown field{suggestion(steps[-1], _fields_at(model, steps[:-1]))}"
        case "missing":
            sentence = "is required"
        case "value_error":
            sentence = str(context["error"])
            steps += [field] if (field := getattr(context["error"], "field", None)) else []
        case "literal_error":
            choices = context["expected"].replace("'", "").split(" or ")
            sentence = f"must be {' or '.join(choices)}, got {shown(given)}"
            if isinstance(given, str):
                sentence += suggestion(given, ", ".join(choices).split(", "))
        case "too_long":
            sentence = f"must have at most {context['max_length']} entries, got {context['actual_length']}"
        case "string_too_long":
            sentence = f"must have at most {context['max_length']} characters"
        case kind:
            sentence = f"must be {_EXPECTED[kind]}, got {shown(given)}"
    return f"{_path(steps)}: {sentence}"


_EXPECTED = {
    "string_type": "text",
    "string_unicode": "text of whole characters",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}


def _path(steps: list[str]) -> str:
    path = "".join(char if char.isprintable() else "�" for char in ".".join(steps))
    return path if len(path) <= _MAX_PATH else f"{path[:_MAX_PATH]}…"


def _fields_at(model: type[BaseModel], steps: list[str]) -> list[str]:
    """The fields of the part of the spec at this path."""
    annotation: Any = model
    for step in steps:
        annotation = _inside(annotation, step)
    return list(getattr(_model_in(annotation), "model_fields", ()))


def _inside(annotation: Any, step: str) -> Any:
    """What stands at one step below: a field of a model, or any value of a mapping or list."""
    if (model := _model_in(annotation)) is not None:
        field = model.model_fields.get(step)
        return field.annotation if field else None
    containers = [one for one in (annotation, *get_args(annotation)) if get_origin(one) in (dict, list)]
    return get_args(containers[0])[-1] if containers else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is, perhaps optional or annotated; not one inside a mapping or list."""
    if hasattr(annotation, "model_fields"):
        found: type[BaseModel] = annotation
        return found
    if get_origin(annotation) in (dict, list):
        return None
    return next((model for one in get_args(annotation) if (model := _model_in(one))), None)
