"""JSON as a machine-readable document should be: a key stands once, numbers are finite, depth is bounded."""

import json
from typing import Any, NoReturn


class DocumentError(ValueError):
    """A text that is no document; `line` where it is known."""

    def __init__(self, sentence: str, line: int | None = None) -> None:
        super().__init__(f"{sentence} (line {line})" if line else sentence)
        self.sentence = sentence
        self.line = line


def parse_json(data: bytes | str) -> Any:
    """The value in `data`.

    Raises:
        DocumentError: with the line where that is known.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refused)
    except DocumentError:
        raise
    except json.JSONDecodeError as error:
        raise DocumentError(
            f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}, column {error.colno}", error.lineno
        ) from None
    except UnicodeDecodeError:
        raise DocumentError("not JSON: not text in UTF-8") from None
    except RecursionError:
        raise DocumentError("not JSON that can be used: nested too deeply") from None
    except ValueError:  # Python reads no integer of more than 4300 digits
        raise DocumentError("not JSON that can be used: a number has too many digits") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in found if keys.count(key) > 1)
        raise DocumentError(f"the key {twice[:80]!r} is there twice")
    return found


def _refused(constant: str) -> NoReturn:
    raise DocumentError(f"not JSON: {constant} is no number")
