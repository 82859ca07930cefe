"""Token estimates without a vendor's vocabulary.

The weights below were fitted to OpenAI's ``o200k_base``. Measured on samples of 100–6,000 characters, the estimate is
within ±8 % of it for English prose, legal English, Python, JSON and Japanese prose, within 15 % for Japanese mixed
with English terms and for figures, and up to 50 % off (mostly too high) for a line of Chinese, German or emoji. The
older ``cl100k_base`` takes 25–35 % more tokens than this for Japanese, and the same for English.

An estimate is for budgets and for meters of models that do not count; a bill from a vendor follows its own count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

_PIECE: Final = re.compile(
    r"(?P<latin>[A-Za-z]+)|(?P<digits>[0-9]+)|(?P<kana>[ぁ-ヿｦ-ﾟ]+)|(?P<han>[一-鿿々]+)|(?P<space>\s+)|(?P<low>_+)"
    r"|(?P<letters>(?:(?![A-Za-zぁ-ヿｦ-ﾟ一-鿿々])[^\W\d_])+)|(?P<other>[^\w\s]+|\w)"
)
_LONG_WORD: Final = re.compile(r"[A-Za-z]{8,}")
_WORD: Final = re.compile(r"[A-Za-z]+")
_DIGITS: Final = re.compile(r"[0-9]{1,3}")
_WIDE_SPACE: Final = re.compile(r"\s{2,}|[^\S ]")
_MARKS: Final = re.compile(r"[^\w\s]+")
_LONG_WORD_FROM: Final = 7
_LONG_WORD_RATE: Final = 0.16
_SPACE_RATE: Final = 0.8
_LOW_RATE: Final = 0.5
_MARK_RATE: Final = 0.9
_MARK_IN_RUN_RATE: Final = 0.55


def _weight(kind: str | None, text: str) -> float:
    size = len(text)
    match kind:
        case "latin":
            return 1.0 + max(0, size - _LONG_WORD_FROM) * _LONG_WORD_RATE
        case "digits":
            return float(math.ceil(size / 3))
        case "kana":
            return size * 0.62
        case "han":
            return size * 0.9
        case "space":
            return 0.0 if text == " " else _SPACE_RATE
        case "letters":
            return size * (0.42 if text[0] < "\u1100" else 0.7)
        case "low":
            return size * _LOW_RATE
        case _:
            if size == 1 and text < "\u0080":
                return _MARK_RATE
            return sum(_MARK_IN_RUN_RATE if mark < "\u0080" else 0.8 if mark < "\U00010000" else 2.0 for mark in text)


def _weight_of_ascii(text: str) -> float:
    """What the weights of the pieces of an ASCII text sum to, five times as fast as one by one."""
    long = _LONG_WORD.findall(text)
    marks = _MARKS.findall(text)
    in_runs = sum(len(run) for run in marks if len(run) > 1)
    return (
        len(_WORD.findall(text))
        + (sum(map(len, long)) - _LONG_WORD_FROM * len(long)) * _LONG_WORD_RATE
        + len(_DIGITS.findall(text))
        + len(_WIDE_SPACE.findall(text)) * _SPACE_RATE
        + text.count("_") * _LOW_RATE
        + sum(1 for run in marks if len(run) == 1) * _MARK_RATE
        + in_runs * _MARK_IN_RUN_RATE
    )


def weigh(text: str) -> Iterator[tuple[str, float]]:
    """The pieces of a text (they join to the text again), each with its estimated share of tokens."""
    for match in _PIECE.finditer(text):
        piece = match.group()
        yield piece, _weight(match.lastgroup, piece)


def weight(text: str) -> float:
    """The estimate before it is rounded up: what the pieces of a text weigh together."""
    return _weight_of_ascii(text) if text.isascii() else sum(share for _, share in weigh(text))


def estimate_tokens(text: str) -> int:
    """How many tokens a text is likely to be. 0 only for the empty text. Linear in its length."""
    # Rounded first, so that the order of summing cannot tip a whole number over the edge.
    return math.ceil(round(weight(text), 6)) or min(1, len(text))
