"""Where a text has the words that were searched for."""

from __future__ import annotations

import re
import unicodedata
from typing import Final, NamedTuple

from nagaya.indexes.terms import fold, query_terms, terms_of

_HIRAGANA: Final = re.compile("[ぁ-ゖゝゞー]")
_VOICED: Final = "ﾞﾟ\u3099\u309a"


class Span(NamedTuple):
    """A piece of a text: ``start <= n < end``, in characters of the text as it is."""

    start: int
    end: int


def highlights(text: str, query: str) -> list[Span]:
    """The pieces of ``text`` that match ``query``, in order and apart from each other, for English and Japanese.

    A word is marked in its other forms too (``mended`` for ``mends``), and in other widths and cases. Endings and
    particles are marked only where the query has nothing else.
    """
    wanted = query_terms(query)
    says = {term for term, weight in wanted.items() if weight >= 0.5 and not _begins_with_ending(term)}
    # A Han character alone is marked where it was asked for alone; inside a word it would mark other words.
    alone = {term for term in says if len(term) > 1 or wanted[term] == 1.0}
    chosen = alone or set(wanted)
    folded, places = _folded_with_places(text)
    spans: list[Span] = []
    for start, end in sorted((term.start, term.end) for term in terms_of(folded) if term.text in chosen):
        found = Span(places[start].start, places[end - 1].end)
        if spans and found.start <= spans[-1].end:
            spans[-1] = Span(spans[-1].start, max(spans[-1].end, found.end))
        else:
            spans.append(found)
    return spans


def _begins_with_ending(term: str) -> bool:
    return len(term) == 2 and _HIRAGANA.match(term) is not None


def _folded_with_places(text: str) -> tuple[str, list[Span]]:
    """The folded text, and for each of its characters the piece of ``text`` that it comes from."""
    pieces: list[str] = []
    places: list[Span] = []
    start = 0
    for end in range(1, len(text) + 1):
        # What belongs to the character before it is folded together with it: か and ゛, ｶ and ﾞ, e and its accent.
        if end < len(text) and (text[end] in _VOICED or unicodedata.combining(text[end])):
            continue
        piece = fold(text[start:end])
        pieces.append(piece)
        places += [Span(start, end)] * len(piece)
        start = end
    return "".join(pieces), places
