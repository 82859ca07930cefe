"""A summary without a model: the sentences of a conversation that say the most, verbatim and in order.

A sentence says much where it holds words that come again in the conversation, figures and names; what people state
counts more than what was answered to them, and a question less than either. Deterministic; English and Japanese.
"""

from __future__ import annotations

import heapq
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nagaya.kernel.tokens import estimate_tokens
from nagaya.models.passages import is_question, sentences

_TERM: Final = re.compile(r"[^\W\d_ぁ-ヿ一-鿿々]{3,}|[ァ-ヿー]{2,}|[一-鿿々]{2,}|\d[\d.,:/-]*")
_FIGURE: Final = re.compile(r"\d")
_NAME: Final = re.compile(r"(?<=[\w、。,] )[A-Z][a-z]+|[ァ-ヿー]{3,}|[一-鿿々]{3,}")
_LONGEST: Final = 300
"""Characters of a sentence that are kept; what is longer is rarely prose."""
_ROLE_WEIGHTS: Final = {"user": 1.0, "assistant": 0.6, "tool": 0.4}
_SHORTEST_TOKENS: Final = 8
_CARRIED: Final = 1.15
"""What was worth a line in the last summary is a little more likely to be worth one again."""


class Said(NamedTuple):
    """One message to summarise."""

    role: str
    text: str


class _Line(NamedTuple):
    place: int
    text: str
    weight: float
    terms: frozenset[str]
    extra: float


def summarize(former: str, said: Sequence[Said], *, limit_tokens: int) -> str:
    """A new summary of a former one (empty: none) and what was said since, one ``- role: sentence`` a line.

    At most ``limit_tokens`` by estimate. The same input always gives the same text.
    """
    carried = [line for line in former.split("\n") if line.startswith("- ")]
    sources: list[tuple[str, str, float]] = []
    for line in carried:
        role, _, text = line[2:].partition(": ")
        sources.append((role, text, _ROLE_WEIGHTS.get(role, 0.5) * _CARRIED))
    for one in said:
        weight = _ROLE_WEIGHTS.get(one.role, 0.5)
        sources += [
            (one.role, sentence[:_LONGEST], weight * (0.3 if is_question(sentence) else 1.0))
            for sentence in sentences(one.text)
        ]
    terms = [frozenset(_terms(text)) for _, text, _ in sources]
    seen = Counter(term for found in terms for term in found)
    lines = [
        _Line(place, f"- {role}: {' '.join(text.split())}", weight, found, _extra(text))
        for place, ((role, text, weight), found) in enumerate(zip(sources, terms, strict=True))
        if found
    ]
    return "\n".join(line.text for line in _fitting(lines, seen, limit_tokens))


def _terms(text: str) -> Iterable[str]:
    return _TERM.findall(unicodedata.normalize("NFKC", text).casefold())


def _extra(text: str) -> float:
    return 0.5 * bool(_FIGURE.search(text)) + 0.3 * bool(_NAME.search(text))


def _worth(line: _Line, seen: Counter[str], said: Counter[str]) -> float:
    """What a line adds to those that were chosen: words that were said already count half as much each time."""
    fresh = sum(math.log1p(seen[term]) * 0.5 ** said[term] for term in line.terms)
    return line.weight * (fresh / math.sqrt(len(line.terms) + 3) + line.extra)


def _fitting(lines: Sequence[_Line], seen: Counter[str], limit_tokens: int) -> list[_Line]:
    chosen: list[_Line] = []
    said: Counter[str] = Counter()
    left = limit_tokens
    # The best first; a line's worth only falls as others are chosen, so one look again at the top is enough.
    heap = [(-_worth(line, seen, said), -line.place, line) for line in lines]
    heapq.heapify(heap)
    while heap and left >= _SHORTEST_TOKENS:
        _, place, line = heapq.heappop(heap)
        worth = -_worth(line, seen, said)
        if heap and worth > heap[0][0]:
            heapq.heappush(heap, (worth, place, line))
            continue
        cost = estimate_tokens(line.text) + 1
        if cost <= left:
            left -= cost
            said.update(line.terms)
            chosen.append(line)
    return sorted(chosen, key=lambda one: one.place)
