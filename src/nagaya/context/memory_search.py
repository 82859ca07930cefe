"""Which memories fit a question: by words, and by meaning where the tenant has an embedding model.

An owner's memories are few, so all of them are looked at: no index has to be kept, and none can tell what was deleted.
"""

from __future__ import annotations

import importlib.util
import math
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog

from nagaya.connections.room import TenantSession
from nagaya.context.memory_records import StoredMemory
from nagaya.errors import NagayaError
from nagaya.indexes.terms import query_terms
from nagaya.usage.meter import Meter, Metric

IN_A_THREAD_FROM: Final = 200
"""From this many memories on, their words are counted in a thread: that takes longer than others should wait."""
_K1: Final = 1.2
_B: Final = 0.75
_VECTOR_SHARE: Final = 0.5
_NEAR: Final = 0.35
"""A cosine below this says nothing: without a common word such a memory is not found."""

_log = structlog.get_logger(__name__)


class Vectors(NamedTuple):
    """Unit vectors of texts and the model that made them; none where there is no model."""

    model: str
    packed: list[bytes]


class Scored(NamedTuple):
    """A memory and how well it fits, from 0 to 1."""

    score: float
    memory: StoredMemory


async def vectors_of(session: TenantSession, meter: Meter, texts: Sequence[str]) -> Vectors | None:
    """A vector per text by the tenant's embedding model; None where there is none that can be used now. Words are
    then all that is searched by."""
    if importlib.util.find_spec("numpy") is None:
        return None
    try:
        models = await session.embeddings()
        if not models:
            return None
        vectors, tokens = await models[0].embed(texts)
    except NagayaError as problem:
        _log.info("memories are searched by words only", action="memories.words_only", code=problem.code)
        return None
    meter.count(session.tenant, Metric.EMBEDDING_TOKENS, tokens)
    return Vectors(models[0].name, [struct.pack(f"<{len(vector)}e", *vector) for vector in vectors])


def rank(memories: Sequence[StoredMemory], query: str, vectors: Vectors | None, limit: int) -> list[Scored]:
    """The memories that fit, best first. Without vectors, by words alone."""
    words = _words(memories, query)
    cosines = _cosines(memories, vectors) if vectors is not None else None
    found = []
    for number, memory in enumerate(memories):
        score = words[number]
        if cosines is not None and memory.embedding == (vectors.model if vectors else None):
            if not score and cosines[number] < _NEAR:
                continue
            score = _VECTOR_SHARE * max(0.0, cosines[number]) + (1 - _VECTOR_SHARE) * score
        if score > 0:
            found.append(Scored(score, memory))
    found.sort(key=lambda one: (-one.score, one.memory.id))
    return found[:limit]


def _words(memories: Sequence[StoredMemory], query: str) -> list[float]:
    """BM25, as a share of what a memory full of every term would have."""
    terms = query_terms(query)
    counts = [memory.terms.counts_of(terms) for memory in memories]
    lengths = [memory.terms.length for memory in memories]
    average = max(1.0, sum(lengths) / max(1, len(lengths)))
    scores = [0.0] * len(memories)
    most = 0.0
    for term, weight in terms.items():
        having = [number for number, count in enumerate(counts) if term in count]
        rarity = weight * math.log1p((len(memories) - len(having) + 0.5) / (len(having) + 0.5))
        most += rarity * (_K1 + 1)
        for number in having:
            often = counts[number][term]
            damping = _K1 * (1 - _B + _B * lengths[number] / average)
            scores[number] += rarity * (_K1 + 1) * often / (often + damping)
    return [score / (most or 1.0) for score in scores]


def _cosines(memories: Sequence[StoredMemory], vectors: Vectors) -> list[float]:
    import numpy as np

    asked = np.frombuffer(vectors.packed[0], dtype="<f2").astype(np.float32)
    cosines = [0.0] * len(memories)
    size = len(vectors.packed[0])
    fitting = [
        number
        for number, memory in enumerate(memories)
        if memory.embedding == vectors.model and len(memory.vector) == size
    ]
    if fitting:
        joined = b"".join(memories[number].vector for number in fitting)
        rows = np.frombuffer(joined, dtype="<f2").reshape(len(fitting), -1).astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1) * float(np.linalg.norm(asked))
        values = (rows @ asked) / np.maximum(lengths, 1e-12)
        for number, value in zip(fitting, values.tolist(), strict=True):
            cosines[number] = value
    return cosines
