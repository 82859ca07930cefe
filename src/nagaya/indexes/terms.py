"""The words of a text, for English and Japanese alike.

English words are folded and brought to a stem. Japanese, which is written without spaces, is taken as pairs of
neighbouring characters, and every Han character also alone. No dictionary is needed, so a new name is found as surely
as an old one. The same text always gives the same terms; ``TERMS_VERSION`` rises when that changes.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from operator import add
from typing import Final, NamedTuple

TERMS_VERSION: Final = 1
"""Two segments can be searched together only where their terms were made alike."""

MAX_TERM_CHARACTERS: Final = 64
"""A longer word (a key, an encoded file) is cut: nobody searches for its end."""
MAX_QUERY_TERMS: Final = 128

_JA: Final = "ぁ-ゖゝゞァ-ヺーヽヾ㐀-䶿一-鿿豈-龎々〆〇\U00020000-\U0003ffff"
_WORD: Final = rf"[^\W_{_JA}]+"
_RUN: Final = re.compile(rf"(?P<ja>[{_JA}]+)|(?P<word>{_WORD}(?:[-./'’]{_WORD})*)")
_INSIDE: Final = re.compile(r"[-./'’]")
_HAN: Final = re.compile("[㐀-䶿一-鿿豈-龎々〆〇\U00020000-\U0003ffff]")
_HIRAGANA: Final = re.compile("[ぁ-ゖゝゞー]+")
_VOWEL: Final = re.compile("[aeiouy]")

_STOP_WORDS: Final = """
a about after all also am an and any are as at be because been before being between both but by can could did do does
doing down during each few for from further had has have having he her here hers him his how i if in into is it its
just me more most my no nor not of off on once only or other our out over own please s same shall she should so some
such t than that the their them then there these they this those through to too under until up us very was we were
what when where which while who whom whose why will with would you your yours
"""
_STOP: Final = frozenset(_STOP_WORDS.split())
"""Words that say little. They are kept in the index, and asked for only where a query has no others."""


class Term(NamedTuple):
    """One term of a text and where it stands: ``start <= n < end`` in the folded text."""

    text: str
    start: int
    end: int
    weight: float
    """How much it says in a query: 1.0 for a word or a pair with nothing but Han or katakana, less for endings."""


def fold(text: str) -> str:
    """One spelling for what reads alike: full and half width, capitals and small letters."""
    return unicodedata.normalize("NFKC", text).casefold()


def stem(word: str) -> str:
    """An English word without its commonest endings. Not a word of the language, only the same for related words."""
    if len(word) < 4 or not word.isascii():
        return word
    word = _singular(word)
    for ending, least in (("ing", 3), ("ied", 2), ("ed", 3)):
        if word.endswith(ending) and len(word) >= len(ending) + least and _VOWEL.search(word[: -len(ending)]):
            word = _undoubled(word[: -len(ending)]) if ending != "ied" else word[:-3] + "y"
            break
    for ending, least in (("ly", 4), ("ment", 3), ("ion", 4), ("er", 4)):
        if word.endswith(ending) and len(word) >= len(ending) + least:
            word = word[: -len(ending)]
            break
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


def _undoubled(word: str) -> str:
    double = len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouslz"
    return word[:-1] if double else word


def terms_of(folded: str) -> Iterator[Term]:
    """The terms of a text that :func:`fold` has folded, with their places."""
    for run in _RUN.finditer(folded):
        if run.lastgroup == "ja":
            yield from _japanese(run.group(), run.start())
        else:
            yield from _english(run.group(), run.start())


def _english(run: str, at: int) -> Iterator[Term]:
    parts = _INSIDE.split(run)
    offset = at
    for part in parts:
        text = stem(part)[:MAX_TERM_CHARACTERS]
        yield Term(text, offset, offset + len(part), 0.0 if part in _STOP else 1.0)
        offset += len(part) + 1
    if len(parts) > 1 and not run.isalpha() and "'" not in run and "’" not in run:
        # RX-200 is also found as RX200, e-mail as email.
        yield Term("".join(parts)[:MAX_TERM_CHARACTERS], at, at + len(run), 1.0)


def _japanese(run: str, at: int) -> Iterator[Term]:
    for offset, pair in enumerate(map(add, run, run[1:])):
        yield Term(pair, at + offset, at + offset + 2, _weight(pair))
    for offset, character in enumerate(run):
        if _HAN.match(character):
            yield Term(character, at + offset, at + offset + 1, 1.0 if len(run) == 1 else 0.3)
    if len(run) == 1 and not _HAN.match(run):
        yield Term(run, at, at + 1, 0.1)


def _weight(pair: str) -> float:
    if _HIRAGANA.fullmatch(pair):
        return 0.2
    return 0.5 if _HIRAGANA.search(pair) else 1.0


def term_counts(text: str) -> Counter[str]:
    """How often each term occurs in a text: :func:`terms_of` without places and weights, several times as quick."""
    counts: Counter[str] = Counter()
    for japanese, run in _RUN.findall(fold(text)):
        if japanese:
            counts.update(map(add, japanese, japanese[1:]))
            counts.update(_HAN.findall(japanese) if len(japanese) > 1 else japanese)
        elif _INSIDE.search(run):
            counts.update(term.text for term in _english(run, 0))
        else:
            counts[stem(run)[:MAX_TERM_CHARACTERS]] += 1
    return counts


def query_terms(text: str) -> dict[str, float]:
    """The terms of a query with their weights, at most 128. Stop words only where there is nothing else."""
    found: dict[str, float] = {}
    rest: dict[str, float] = {}
    for term in terms_of(fold(text)):
        if term.weight:
            found[term.text] = max(found.get(term.text, 0.0), term.weight)
        else:
            rest[term.text] = 1.0
    chosen = sorted((found or rest).items(), key=lambda pair: -pair[1])
    return dict(chosen[:MAX_QUERY_TERMS])


def term_key(term: str) -> int:
    """64 bits that stand for a term in a segment. Two of a million terms share one with a chance of 1 in 37 million."""
    return int.from_bytes(blake2b(term.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
