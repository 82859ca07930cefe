"""A summary without a model: the sentences of a conversation that say the most, verbatim and in order.

A sentence says much where it holds words that come again in the conversation, figures and names; what people state
counts more than what was answered to them, and a question less than either. Deterministic; English and Japanese.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nagaya.models.passages import is_question, sentences
from nagaya.models.tokens import estimate_tokens

_TERM: Final = re.compile(r"[^\W\d_ぁ-ヿ一-鿿々]{3,}|[ァ-ヿー]{2,}|[一-鿿々]{2,}|\d[\d.,:/-]*")
_FIGURE: Final = re.compile(r"\d")
_NAME: Final = re.compile(r"(?<=[\w、。,] )[A-Z][a-z]+|[ァ-ヿー]{3,}|[一-鿿々]{3,}")
_LONGEST: Final = 300
"""Characters of a sentence that are kept; what is longer is rarely prose."""
_ROLE_WEIGHTS: Final = {"user": 1.0, "assistant": 0.6, "tool": 0.4}
_CARRIED: Final = 1.15
"""What was worth a line in the last summary is a little more likely to be worth one again."""


class Said(NamedTuple):
    """One message to summarise."""

    role: str
    text: str


class _Line(NamedTuple):
    place: int
    text: str
    score: float


def summarize(former: str, said: Sequence[Said], *, limit_tokens: int) -> str:
    """A new summary of a former one (empty: none) and what was said since, one ``- role: sentence`` a line.

    At most ``limit_tokens`` by estimate. The same input always gives the same text.
    """
    lines = [line for line in former.split("\n") if line.startswith("- ")]
    sources: list[tuple[str, str, float]] = []
    for line in lines:
        role, _, text = line[2:].partition(": ")
        sources.append((role, text, _ROLE_WEIGHTS.get(role, 0.5) * _CARRIED))
    for one in said:
        weight = _ROLE_WEIGHTS.get(one.role, 0.5)
        sources += [
            (one.role, sentence[:_LONGEST], weight * (0.3 if is_question(sentence) else 1.0))
            for sentence in sentences(one.text)
        ]
    terms = [Counter(_terms(text)) for _, text, _ in sources]
    seen: Counter[str] = Counter()
    for found in terms:
        seen.update(found.keys())
    scored = [
        _Line(place, f"- {role}: {' '.join(text.split())}", weight * _worth(text, found, seen))
        for place, ((role, text, weight), found) in enumerate(zip(sources, terms, strict=True))
    ]
    return "\n".join(line.text for line in _fitting(scored, limit_tokens))


def _terms(text: str) -> Iterable[str]:
    return _TERM.findall(unicodedata.normalize("NFKC", text).casefold())


def _worth(text: str, found: Counter[str], seen: Counter[str]) -> float:
    if not found:
        return 0.0
    # What comes again matters, but a word of every sentence tells nothing apart; hence the root of a logarithm's sum.
    common = sum(math.log1p(seen[term]) for term in found) / math.sqrt(len(found) + 3)
    extra = 0.5 * bool(_FIGURE.search(text)) + 0.3 * bool(_NAME.search(text))
    return common + extra


def _fitting(lines: Sequence[_Line], limit_tokens: int) -> list[_Line]:
    chosen: list[_Line] = []
    left = limit_tokens
    known: set[str] = set()
    for line in sorted(lines, key=lambda one: (-one.score, -one.place)):
        if line.score <= 0 or line.text in known:
            continue
        cost = estimate_tokens(line.text) + 1
        if cost > left:
            if left < 12:
                break
            continue
        left -= cost
        known.add(line.text)
        chosen.append(line)
    return sorted(chosen, key=lambda one: one.place)
