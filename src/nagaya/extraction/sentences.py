"""Where the sentences of a Japanese or English text end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_MARK: Final = re.compile(
    r"(?P<line>\n\s*)|(?P<open>[「『（(【〔《〈“])"
    r"|(?P<end>(?:[。！？｡]+|[!?]+|\.+)[!?。！？]*)(?P<close>[」』）)\]】〕》〉”’\"']*)|(?P<shut>[」』）)】〕》〉”])"
)
_SPACE: Final = re.compile(r"\s*")
_WIDE_END: Final = frozenset("。！？｡")
_GOES_ON: Final = frozenset("とっがをにはもの、，")
"""What follows a quotation that is part of the sentence around it: 「はい。」と答えた。"""
_BRACKETED: Final = 300
"""Characters after which an open bracket is taken for a slip: else one of them would make a sentence of the rest."""
_WORD_BEFORE: Final = re.compile(r"[^\W\d_](?:[^\W\d_]|\.(?=\w))*\Z")
_LOOK_BACK: Final = 16
_SHORTENED: Final = """
    mr mrs ms dr prof sr jr st messrs rev gen col sgt capt lt hon gov sen rep pres vs cf ca al approx est
    e.g i.e viz no nos vol fig figs eq eqs ch chap sec sect p pp ed eds art arts para inc ltd co corp dept univ
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun a.m p.m u.s u.k
"""
_ABBREVIATIONS: Final = frozenset(_SHORTENED.split())


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text, each with the space after it: together they are the text again. A line feed ends one.

    No sentence ends inside brackets that are closed soon, after an abbreviation, an initial, or before a small letter.
    """
    start = 0
    opened: list[int] = []
    for mark in _MARK.finditer(text):
        if mark["open"]:
            opened.append(mark.start())
            continue
        for _ in range(len(mark["close"] or mark["shut"] or "")):
            if opened:
                opened.pop()
        if mark["shut"] or (mark["end"] and not _ends(text, mark, opened)):
            continue
        end = _SPACE.match(text, mark.end()).end()  # type: ignore[union-attr]  # it matches even nothing
        if start < end < len(text):
            yield text[start:end]
            start = end
        opened.clear()
    if start < len(text):
        yield text[start:]


def _ends(text: str, mark: re.Match[str], opened: list[int]) -> bool:
    if opened and mark.start() - opened[-1] < _BRACKETED:
        return False
    after = text[mark.end() : mark.end() + 1]
    if _WIDE_END.intersection(mark["end"]):
        return not (mark["close"] and after in _GOES_ON)
    if after and not after.isspace():
        return False
    if not mark["end"].startswith("."):
        return True
    following = _SPACE.match(text, mark.end()).end()  # type: ignore[union-attr]  # it matches even nothing
    if text[following : following + 1].islower():
        return False
    before = _WORD_BEFORE.search(text[max(0, mark.start() - _LOOK_BACK) : mark.start()])
    if before is None or mark["close"]:
        return True
    word = before.group()
    return word.lower() not in _ABBREVIATIONS and not (len(word) == 1 and word.isupper())
