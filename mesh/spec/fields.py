"""What the fields of a spec are made of: notations, bounded numbers, names; each with its sentence and JSON Schema."""

import re
import signal
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)

from mesh import units
from mesh.cron import parse_cron, parse_zone
from mesh.suggestion import suggestion
from mesh.units import shown


class Part(BaseModel):
    """Base of every part of a spec: unknown fields are errors, values are immutable and never guessed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class FieldFault(ValueError):
    """A fault that a check of several fields found in one of them."""

    def __init__(self, field: str, sentence: str) -> None:
        super().__init__(sentence)
        self.field = field


def _quantity(
    parse: Callable[[object], Any], show: Callable[[Any], str], pattern: str, example: str
) -> tuple[Any, ...]:
    schema = {
        "anyOf": [{"type": "string", "pattern": pattern}, {"type": "number", "minimum": 0}],
        "examples": [example],
    }
    return BeforeValidator(parse), PlainSerializer(show), WithJsonSchema(schema)


def whole(low: int, high: int) -> tuple[Any, ...]:
    """What makes an integer of a spec one within bounds."""

    def check(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(f"must be a whole number, got {shown(value)}")
        if not low <= value <= high:
            raise ValueError(f"must be {low}..{high}, got {shown(value)}")
        return value

    return BeforeValidator(check), WithJsonSchema({"type": "integer", "minimum": low, "maximum": high})


def number(low: float, high: float) -> tuple[Any, ...]:
    """What makes a number of a spec a finite one within bounds."""

    def check(value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"must be a number, got {shown(value)}")
        if not low <= value <= high:  # also refuses NaN
            raise ValueError(f"must be a number {low:.10g}..{high:.10g}, got {shown(value)}")
        return float(value)

    return BeforeValidator(check), WithJsonSchema({"type": "number", "minimum": low, "maximum": high})


def _like(pattern: str, what: str) -> BeforeValidator:
    whole = re.compile(pattern)

    def check(value: object) -> str:
        if not isinstance(value, str) or not whole.fullmatch(value) or len(value) > 4096:
            raise ValueError(f"must be {what}, got {shown(value)}")
        return value

    return BeforeValidator(check)


def _text(pattern: str, what: str, example: str) -> tuple[Any, ...]:
    schema = {"type": "string", "pattern": f"^({pattern})$", "examples": [example]}
    return _like(pattern, what), WithJsonSchema(schema)


def one_sentence(what: str) -> WrapValidator:
    """For a union: one sentence, instead of one for each of its branches."""

    def check(value: object, branches: ValidatorFunctionWrapHandler) -> Any:
        try:
            return branches(value)
        except ValidationError:
            raise ValueError(f"must be {what}, got {shown(value)}") from None

    return WrapValidator(check)


def _number_as_text(value: object) -> object:
    """`PORT: 8080` and `[sleep, 100]` mean the text, as in a shell."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not contain a NUL character")
    return value


def _count_or_share(value: object) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000:
        return value
    if isinstance(value, str) and re.fullmatch("[0-9]{1,5}", value):
        return int(value)
    if isinstance(value, str) and value.endswith("%"):
        return units.format_share(units.parse_share(value))
    raise ValueError(f"must be a count 0..100000 or a share such as 25%, got {shown(value)}")


def _signal(value: object) -> str:
    if not isinstance(value, str) or value not in signal.Signals.__members__:
        close = suggestion(value, signal.Signals.__members__) if isinstance(value, str) else ""
        raise ValueError(f"must be a signal such as SIGTERM, got {shown(value)}{close}")
    return value


def _cron(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be five fields such as */5 * * * *, got {shown(value)}")
    parse_cron(value)
    return value


def _zone(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be a time zone such as UTC or Europe/Berlin, got {shown(value)}")
    parse_zone(value)
    return value


_SHARE = r"^[0-9]+(\.[0-9]+)?%$"

Duration = Annotated[
    float, *_quantity(units.parse_duration, units.format_duration, r"^([0-9]+(\.[0-9]+)?(ms|s|m|h|d))+$", "15s")
]
Cpu = Annotated[int, *_quantity(units.parse_cpu, units.format_cpu, r"^[0-9]+(\.[0-9]+)?m?$", "250m")]
Memory = Annotated[int, *_quantity(units.parse_memory, units.format_memory, r"^[0-9]+(\.[0-9]+)?([KMGT]i?)?$", "128Mi")]
Share = Annotated[float, *_quantity(units.parse_share, units.format_share, _SHARE, "25%")]
Percent = Annotated[float, *_quantity(units.parse_percent, units.format_share, _SHARE, "70%")]
CountOrShare = Annotated[
    int | str,
    BeforeValidator(_count_or_share),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": _SHARE}]}),
]

PortNumber = Annotated[int, *whole(1, 65535)]
Count = Annotated[int, *whole(0, 10**9)]
Positive = Annotated[int, *whole(1, 10**9)]
Replicas = Annotated[int, *whole(0, 100_000)]
Completions = Annotated[int, *whole(1, 100_000)]
Attempts = Annotated[int, *whole(0, 10)]
Weight = Annotated[int, *whole(-100, 100)]
Priority = Annotated[int, *whole(0, 100)]
Number = Annotated[float, *number(0, 1e12)]
Ratio = Annotated[float, *number(0, 1)]
Status = Annotated[int, *whole(400, 599)]

Text = Annotated[str, BeforeValidator(_number_as_text), AfterValidator(_without_nul), Field(max_length=128 * 1024)]
Word = Annotated[str, _like(r"\S{1,512}", "a word")]
FilePath = Annotated[str, *_text(r"/[^\0]*", "a path that begins with /", "/var/lib/data")]
UrlPath = Annotated[str, *_text(r"/[!-~]*", "a path that begins with /, all but visible ASCII escaped", "/healthz")]
NetworkName = Annotated[str, _like(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", "a network's name")]
VariableName = Annotated[str, _like(r"[A-Za-z_][A-Za-z0-9_.-]*", "a variable's name")]
_EXAMPLES = ["*/5 * * * *", "@hourly"]
Cron = Annotated[str, BeforeValidator(_cron), WithJsonSchema({"type": "string", "examples": _EXAMPLES})]
Zone = Annotated[str, BeforeValidator(_zone), WithJsonSchema({"type": "string", "examples": ["UTC", "Europe/Berlin"]})]
Signal = Annotated[str, BeforeValidator(_signal), WithJsonSchema({"type": "string", "examples": ["SIGTERM", "SIGINT"]})]
HashOf = Annotated[str, *_text(r"client|header:[!-~]+|cookie:[!-~]+", "client, header:NAME or cookie:NAME", "client")]

_DNS_NAME = r"[A-Za-z0-9_][-A-Za-z0-9_]*(\.[A-Za-z0-9_][-A-Za-z0-9_]*)*"
RouteHost = Annotated[
    str, *_text(rf"|\*|(\*\.)?{_DNS_NAME}", "a host such as shop.example.com or *.example.com", "shop.example.com")
]
HostAndPort = Annotated[
    str, *_text(rf"({_DNS_NAME}|\[[0-9A-Fa-f:.]+\])(:[0-9]{{1,5}})?", "a host, perhaps with a port", "shop.example.com")
]
Method = Annotated[str, *_text(r"[A-Z][A-Z0-9_-]{0,31}", "a method such as GET", "GET")]
HeaderName = Annotated[str, _like(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", "a header's name")]
HeaderValue = Annotated[str, _like(r"[!-~]([\t -~]*[!-~])?", "a header's value")]
RouteWeight = Annotated[int, *whole(0, 1_000_000)]
RateOf = Annotated[str, *_text(r"client|rule|header:[!-9;-~]+", "client, rule or header:NAME", "client")]
