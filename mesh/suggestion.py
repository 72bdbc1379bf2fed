"""`did you mean …?` for a word that is nearly a known one."""

from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'replicas'?)`, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word[:80], list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
