"""What is looked for in an index, and what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from nagaya.indexes.filters import Attributes, Filter

if TYPE_CHECKING:
    from nagaya.indexes.segment import Array

MAX_LIMIT: Final = 1000

VECTOR_SHARE: Final = 0.6
"""The vectors' part of a score, and the words' is the rest; decision 13 tells how it was found."""


class Query(NamedTuple):
    """What is looked for. ``embedding`` names the model of ``vector``; segments of another are searched by words
    alone. ``vector_share`` from 0 (words alone) to 1 (vectors alone)."""

    text: str
    vector: Sequence[float] | Array | None = None
    embedding: str = ""
    limit: int = 10
    filter: Filter | None = None
    vector_share: float = VECTOR_SHARE


class Hit(NamedTuple):
    """A chunk that was found. ``score`` is between 0 and 1; ``words`` and ``cosine`` are what it was made of."""

    chunk_id: str
    document_id: str
    attributes: Attributes
    score: float
    words: float
    cosine: float
