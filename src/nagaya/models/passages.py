"""Finding the passages of a conversation that answer a question, by the words they share.

English is compared by word stems, Japanese by pairs of neighbouring characters, both weighted as BM25 does (Robertson
and Zaragoza, 2009): rare words count more, long passages less. Deterministic, and no part of it leaves the process.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

_K1: Final = 1.2
_B: Final = 0.75
_TURNS_READ: Final = 48
"""Turns whose sentences are compared one by one, chosen by a coarse count over all of them."""
_TERMS: Final = 48
QUOTE_CHARACTERS: Final = 400
"""A longer sentence is quoted only around the words that matched."""
_KEEP: Final = 0.4
"""A passage is quoted when it scores at least this share of the best one."""

_STOP_WORDS: Final = """
a about above after again all also am an and any are as at be because been before being between both but by can
could did do does doing down each few for from further had has have having he her here hers him his how i if in
into is it its just know let like made make may me might more most much must my no nor not now of off on once
only or other our out over own please remember remind said same say says shall she should so some such tell than
that the their them then there these they thing things this those through to told too under until up us very was
we were what when where which while who whom whose why will with would you your yours
"""
_STOP: Final = frozenset(_STOP_WORDS.split())
_SENTENCE: Final = re.compile(r"[^。！？!?\n]*?(?:[。！？]+[」』）)]*|[.!?]+[\"')\]]*(?=\s|$)|[!?]+|\n|$)")
_LATIN: Final = re.compile(r"[^\W\d_ぁ-ヿ一-鿿々]{2,}|\d+(?:[.,:/-]\d+)*")
_CJK: Final = re.compile(r"[ぁ-ヿ一-鿿々ー]+")
_HIRAGANA: Final = re.compile(r"[ぁ-ゟ]+")
_ASKED: Final = re.compile(r"(?:[?？]|(?:か|かな|の)[。]?|ください[。]?|教えて[。]?)[\"'」』）)\s]*$")
_QUESTION_HAN: Final = frozenset("何誰教下今")
_ENDINGS: Final = r"(?:y|ies|ied|e|es|s|ed|d|ing|er|ers)?"


class Passage(NamedTuple):
    """A sentence as it stands in turn number ``turn``, and how well it fits."""

    turn: int
    text: str
    score: float


def is_japanese(text: str) -> bool:
    """Whether a text is to be answered in Japanese: it holds kana or Han characters."""
    return _CJK.search(text) is not None


def is_question(sentence: str) -> bool:
    """Whether a sentence asks, in English or Japanese."""
    return _ASKED.search(sentence) is not None


def sentences(text: str) -> list[str]:
    """The sentences of an English or Japanese text, verbatim, without the space around them."""
    return [piece for match in _SENTENCE.finditer(text) if (piece := match.group().strip())]


def _fold(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


class _Term(NamedTuple):
    text: str
    pattern: re.Pattern[str] | None
    weight: float

    def count(self, folded: str) -> int:
        """How often the term occurs. The plain look comes first: it is a hundred times faster than the pattern."""
        if self.pattern is None:
            return folded.count(self.text)
        return len(self.pattern.findall(folded)) if self.text in folded else 0


def _stem(word: str) -> str:
    for ending in ("ies", "ied", "ing", "ers", "er", "es", "ed", "y", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            stem = word[: -len(ending)]
            double = len(stem) > 3 and stem[-1] == stem[-2] and ending in ("ing", "ed", "er", "ers")
            return stem[:-1] if double and stem[-1] not in "lsz" else stem
    return word


def _terms(question: str) -> list[_Term]:
    folded = _fold(question)
    found: dict[str, _Term] = {}
    for word in _LATIN.findall(folded):
        if word in _STOP:
            continue
        stem = word if word[0].isdigit() else _stem(word)
        pattern = re.compile(rf"(?<![^\W_]){re.escape(stem)}{re.escape(stem[-1])}?{_ENDINGS}(?![a-z0-9])")
        found.setdefault(stem, _Term(stem, pattern, 1.0))
    weak: dict[str, _Term] = {}
    for run in _CJK.findall(folded):
        for pair in [run[at : at + 2] for at in range(max(1, len(run) - 1))]:
            if _HIRAGANA.fullmatch(pair):
                # Endings and particles: they say little, so they count only where the question has nothing else.
                weak.setdefault(pair, _Term(pair, None, 0.2))
            elif not _QUESTION_HAN.intersection(pair):
                found.setdefault(pair, _Term(pair, None, 0.4 if _HIRAGANA.search(pair) else 1.0))
    return list((found or weak).values())[:_TERMS]


def find_passages(question: str, turns: Sequence[tuple[int, str]], *, limit: int = 3) -> list[Passage]:
    """The passages of ``turns`` (number and text, in order) that share the question's words, best first.

    Every passage is a verbatim piece of its turn. Of two that say the same, the later is kept; of two that score the
    same, the later comes first. None where nothing is shared.
    """
    terms = _terms(question)
    if not terms or not turns:
        return []
    folded = [_fold(text) for _, text in turns]
    counts = [[term.count(text) for term in terms] for text in folded]
    weights = [
        term.weight * math.log(1 + (len(turns) - having + 0.5) / (having + 0.5))
        for index, term in enumerate(terms)
        for having in (sum(1 for row in counts if row[index]),)
    ]
    average = sum(map(len, folded)) / len(folded)
    coarse = sorted(
        (
            (_bm25(row, weights, len(text), average), at)
            for at, (row, text) in enumerate(zip(counts, folded, strict=True))
        ),
        reverse=True,
    )
    chosen = [turns[at] for score, at in coarse[:_TURNS_READ] if score > 0]
    return _best(_scored(chosen, terms, weights, _fold(question)), limit)


def _bm25(counts: Iterable[int], weights: Iterable[float], length: float, average: float) -> float:
    damping = _K1 * (1 - _B + _B * length / (average or 1))
    return sum(
        weight * count * (_K1 + 1) / (count + damping) for count, weight in zip(counts, weights, strict=True) if count
    )


def _scored(
    turns: Sequence[tuple[int, str]], terms: Sequence[_Term], weights: Sequence[float], asked: str
) -> list[Passage]:
    passages = []
    for number, text in turns:
        for sentence in sentences(text):
            folded = _fold(sentence)
            counts = [term.count(folded) for term in terms]
            if not any(counts) or folded.strip() == asked.strip():
                continue
            score = _bm25(counts, weights, len(folded), 60)
            if is_question(sentence):
                # A question that was asked before rarely answers the same question.
                score *= 0.25
            passages.append(Passage(number, _shorten(sentence, terms), score))
    return passages


def _best(passages: list[Passage], limit: int) -> list[Passage]:
    best: dict[str, Passage] = {}
    for passage in sorted(passages, key=lambda one: (one.score, one.turn), reverse=True):
        best.setdefault(_fold(passage.text), passage)
    ranked = list(best.values())[:limit]
    return [passage for passage in ranked if passage.score >= _KEEP * ranked[0].score]


def _shorten(sentence: str, terms: Sequence[_Term]) -> str:
    if len(sentence) <= QUOTE_CHARACTERS:
        return sentence
    lower = sentence.lower()
    first = min((at for term in terms if (at := lower.find(term.text)) >= 0), default=0)
    start = max(0, min(first - QUOTE_CHARACTERS // 4, len(sentence) - QUOTE_CHARACTERS))
    return sentence[start : start + QUOTE_CHARACTERS].strip()
