"""How much of a query's words a text has: a score that depends on the text and the query alone.

So texts of every kind, in an index or read just now, stand in one order, and a page begins where the last one ended
while other texts come and go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LEAST: Final = 0.3
"""The share of a query's words that a text must have."""
MOST: Final = 255
"""Occurrences that are told apart: an index keeps them in eight bits."""
_OF_SHARE: Final = 0.9
"""What having the words counts for; having them often is the rest."""


OFTEN: Final = tuple(count / (count + 1) for count in range(MOST + 1))
"""What a word counts for by how often a text has it."""


def coverage(counts: Mapping[str, int], wanted: Mapping[str, float]) -> float:
    """From 0 (not found) to 1: how much of ``wanted`` (terms and weights, at least one) a text with these ``counts``
    has."""
    share = often = 0.0
    for term, weight in wanted.items():
        if count := counts.get(term, 0):
            share += weight
            often += weight * OFTEN[min(count, MOST)]
    return covered(share, often, sum(wanted.values()))


def covered(share: float, often: float, total: float) -> float:
    """The score of a text that has ``share`` of the ``total`` weight; ``often`` is the sum of the weights of what it
    has, each times its ``OFTEN``. Both summed in the order of the query's terms, so that the last digit is the same."""
    if share / total < LEAST:
        return 0.0
    return round(_OF_SHARE * (share / total) + (1 - _OF_SHARE) * (often / total), 6)
