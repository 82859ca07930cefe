"""How well search finds what it should: recall@5 and nDCG@10 on the texts of this folder, in English and Japanese.

``python -m quality.measure`` from ``tests/``. A set has manuals, contracts, staff rules and support answers with near
misses among them (E-14 and E-41, three notice periods), and queries that say it in the passage's words or in others. The
fusion was tuned on every other query (``tuned``); the rest (``held_out``) were only measured.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from nagaya.indexes.query import VECTOR_SHARE, Query
from nagaya.indexes.segment import Part, build_segment, entry_of, open_segment
from nagaya.models.embeddings import BUILTIN_EMBEDDINGS_NAME, DIMENSIONS, BuiltinEmbeddings

FOLDER = Path(__file__).parent
LANGUAGES = ("en", "ja")
WAYS = {"words": 0.0, "vectors": 1.0, "hybrid": VECTOR_SHARE}


class Asked(NamedTuple):
    text: str
    relevant: dict[str, int]
    """Passages by name: 2 answers the query, 1 helps."""


class Figures(NamedTuple):
    recall_5: float
    ndcg_10: float


def passages(language: str) -> dict[str, str]:
    return dict(_lines(f"passages.{language}.txt"))


def queries(language: str) -> list[Asked]:
    return [
        Asked(text, {name: int(grade) for name, grade in (each.split("=") for each in judged.split())})
        for text, judged in _lines(f"queries.{language}.txt")
    ]


def _named(language: str) -> list[tuple[str, str]]:
    return [(f"{language}/{name}", text) for name, text in passages(language).items()]


def _lines(name: str) -> list[tuple[str, str]]:
    lines = (FOLDER / name).read_text("utf-8").splitlines()
    return [(first, second) for first, _, second in (line.partition(" | ") for line in lines)]


class Measured:
    """The sets of one language or several in one index, embedded once."""

    def __init__(self, *languages: str) -> None:
        texts = {name: text for language in languages for name, text in _named(language)}
        self.queries = [
            Asked(each.text, {f"{language}/{name}": grade for name, grade in each.relevant.items()})
            for language in languages
            for each in queries(language)
        ]
        vectors, asked = embedded(list(texts.values())), embedded([each.text for each in self.queries])
        entries = [
            entry_of(name, name, text, vector) for (name, text), vector in zip(texts.items(), vectors, strict=True)
        ]
        content = build_segment(entries, embedding=BUILTIN_EMBEDDINGS_NAME, dimensions=DIMENSIONS)
        self.part = Part(open_segment(content))
        self.vectors = asked

    def figures(self, way: str, *, half: str = "all", share: float | None = None) -> Figures:
        """The mean over the queries: ``all``, those the fusion was ``tuned`` on, or the ``held_out`` ones."""
        numbers = {"all": slice(None), "tuned": slice(0, None, 2), "held_out": slice(1, None, 2)}[half]
        share = WAYS[way] if share is None else share
        found = [
            (self.ranking(each.text, vector, share), each.relevant)
            for each, vector in list(zip(self.queries, self.vectors, strict=True))[numbers]
        ]
        return Figures(
            sum(_recall(names, relevant) for names, relevant in found) / len(found),
            sum(_ndcg(names, relevant) for names, relevant in found) / len(found),
        )

    def ranking(self, text: str, vector: Sequence[float], share: float) -> list[str]:
        from nagaya.indexes.hybrid import search

        query = Query(text, vector, BUILTIN_EMBEDDINGS_NAME, limit=10, vector_share=share)
        return [hit.chunk_id for hit in search([self.part], query)]


def embedded(texts: Sequence[str]) -> Sequence[Sequence[float]]:
    """The builtin model's vectors."""
    return asyncio.run(BuiltinEmbeddings().embed(texts))[0]


def _recall(names: Sequence[str], relevant: dict[str, int]) -> float:
    return len(relevant.keys() & set(names[:5])) / len(relevant)


def _ndcg(names: Sequence[str], relevant: dict[str, int]) -> float:
    gained = sum((2 ** relevant.get(name, 0) - 1) / math.log2(place + 2) for place, name in enumerate(names[:10]))
    best = sorted(relevant.values(), reverse=True)[:10]
    return gained / sum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(best))


if __name__ == "__main__":
    for languages in (*((each,) for each in LANGUAGES), LANGUAGES):
        measured, language = Measured(*languages), "+".join(languages)
        for way in WAYS:
            for half in ("tuned", "held_out", "all"):
                recall, ndcg = measured.figures(way, half=half)
                print(f"{language:5} {way:8} {half:9} recall@5 {recall:.3f}  nDCG@10 {ndcg:.3f}")
