"""Lines that are one text: in Japanese and Chinese they join as they are, in other languages with a space."""

from __future__ import annotations

import re
from typing import Final

_WIDE: Final = r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef]"
_BETWEEN_WIDE: Final = re.compile(rf"(?<={_WIDE})[ \t]*\n\s*(?={_WIDE})")
_WIDE_AT_END: Final = re.compile(rf"{_WIDE}\Z")
_WIDE_AT_START: Final = re.compile(_WIDE)
_HYPHENS: Final = "\u00ad\u0002\ufffe"
"""What PDF readers put for a hyphen at the end of a line that is not there in the word."""


def unwrapped(text: str) -> str:
    """A text whose line feeds mean nothing, as in HTML, in one line."""
    return " ".join(_BETWEEN_WIDE.sub("", text).split())


def joined(first: str, second: str) -> str:
    """Two lines of one paragraph as one text; a word that was divided between them is whole again."""
    if not first or not second:
        return first + second
    if first[-1] in _HYPHENS:
        return first[:-1] + second
    if first[-1] == "-" and first[-2:-1].islower() and second[:1].islower():
        return first[:-1] + second
    if _WIDE_AT_END.search(first) and _WIDE_AT_START.match(second):
        return first + second
    return f"{first} {second}"
