"""The words of one memory, counted once for many searches."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from nagaya.indexes.terms import term_counts

_MOST: Final = 65_535


class MemoryTerms:
    """How often a text has which terms, in ten bytes a term: a dictionary takes ten times as much, and a long Japanese
    text has thousands. ``length`` counts all of them."""

    __slots__ = ("_keys", "_often", "length")

    def __init__(self, text: str) -> None:
        # The hashes of a process's own strings: 64 bits, and nothing of them leaves the process.
        counts = sorted((hash(term), min(count, _MOST)) for term, count in term_counts(text).items())
        self._keys = array("q", [key for key, _ in counts])
        self._often = array("H", [count for _, count in counts])
        self.length = sum(self._often)

    def counts_of(self, wanted: Iterable[str]) -> dict[str, int]:
        """Those of ``wanted`` that the text has, and how often."""
        found: dict[str, int] = {}
        for term in wanted:
            key = hash(term)
            at = bisect_left(self._keys, key)
            if at < len(self._keys) and self._keys[at] == key:
                found[term] = self._often[at]
        return found
