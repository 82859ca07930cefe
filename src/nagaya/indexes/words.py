"""Which chunks of segments have a query's words, scored as :mod:`nagaya.indexes.coverage` scores a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from nagaya.indexes.coverage import LEAST, OFTEN, covered
from nagaya.indexes.segment import Part
from nagaya.indexes.terms import term_key

_OFTEN: Final = np.array(OFTEN)


class Covered(NamedTuple):
    """A chunk that has enough of the words."""

    chunk_id: str
    document_id: str
    score: float


def covering(parts: Sequence[Part], wanted: Mapping[str, float]) -> list[Covered]:
    """Every chunk with enough of ``wanted`` (terms and weights, at least one), in no order."""
    total = sum(wanted.values())
    found = []
    for part in parts:
        segment = part.segment
        share, often = np.zeros(segment.chunks), np.zeros(segment.chunks)
        for term, weight in wanted.items():
            chunks, counts = segment.postings(term_key(term))
            share[chunks] += weight
            often[chunks] += weight * _OFTEN[counts]
        for number in np.flatnonzero(part.kept & (share / total >= LEAST)).tolist():
            score = covered(float(share[number]), float(often[number]), total)
            document_id = segment.document_ids[int(segment.document_of[number])]
            found.append(Covered(segment.chunk_ids[number], document_id, score))
    return found
