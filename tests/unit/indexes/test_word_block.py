"""Blocks of words: they score texts as the texts themselves are scored, and refuse what is damaged or another's."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.errors import IndexDamaged, IndexOutdated
from nagaya.indexes import word_block
from nagaya.indexes.coverage import MOST, coverage
from nagaya.indexes.terms import query_terms, term_counts
from nagaya.indexes.word_block import MAX_BYTES, MAX_TERMS, MAX_TEXTS, BlockWriter, Text, Wanted, WordBlock

words = st.sampled_from(
    [
        "zebra",
        "zebras",
        "Stripes",
        "grass",
        "屋根",
        "修理の",
        "京都",
        "ｼﾏｳﾏ",
        "シマウマ",
        "E-14",
        "the",
        "of",
        "é",
        "１２",
        "🙂",
    ]
)
texts = st.lists(st.lists(words, max_size=30).map(" ".join), max_size=40)


def block_of(given_texts: list[str], *, first: int = 5, apart: int = 3) -> bytes:
    writer = BlockWriter(first)
    for number, text in enumerate(given_texts):
        assert writer.add(Text(first + number * apart, 1_000 + number, term_counts(text)))
    return writer.written(first + len(given_texts) * apart, is_full=True)


@given(texts, st.lists(words, min_size=1, max_size=6).map(" ".join))
@settings(deadline=None)
def test_a_block_scores_texts_as_they_are_scored_themselves(given_texts, query):
    wanted = query_terms(query)
    if not wanted:
        return
    scores = [coverage(term_counts(text), wanted) for text in given_texts]
    expected = [(5 + number * 3, 1_000 + number, score) for number, score in enumerate(scores) if score]
    assert WordBlock(block_of(given_texts)).found(Wanted(wanted)) == expected


def test_more_occurrences_than_fit_in_a_byte_count_as_many_as_fit():
    wanted = query_terms("zebra grass")
    (found,) = WordBlock(block_of(["zebra " * (MOST * 4)])).found(Wanted(wanted))
    assert found.score == coverage({"zebra": MOST}, wanted)


def test_a_machine_of_the_other_byte_order_reads_what_it_writes(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big" if sys.byteorder == "little" else "little")
    block = WordBlock(block_of(["zebra", "grass"]))
    assert [found.place for found in block.found(Wanted({"grass": 1.0}))] == [8]


def test_a_block_is_full_by_its_texts_or_by_its_words_and_never_refuses_the_first():
    writer = BlockWriter(0)
    for place in range(MAX_TEXTS):
        assert writer.add(Text(place, 0, {"zebra": 1}))
    assert not writer.add(Text(MAX_TEXTS, 0, {"zebra": 1}))
    assert not writer.leave(MAX_TEXTS)
    writer = BlockWriter(0)
    taken = 0
    while writer.add(Text(taken, 0, {f"{taken}-{number}": 1 for number in range(MAX_TERMS)})):
        taken += 1
    assert taken == 1
    assert len(writer.written(1, is_full=True)) < MAX_BYTES
    assert WordBlock(writer.written(1, is_full=True)).upto == 1


def test_a_text_of_too_many_words_is_left_to_be_read():
    writer = BlockWriter(10)
    assert writer.add(Text(11, 0, dict.fromkeys(map(str, range(MAX_TERMS + 1)), 1)))
    block = WordBlock(writer.written(12, is_full=False))
    assert (block.unread, block.first, block.upto, block.is_full) == ([11], 10, 12, False)
    assert block.found(Wanted({"0": 1.0})) == []


def test_what_is_damaged_or_of_another_version_is_refused(monkeypatch):
    content = block_of(["zebra grass", "屋根の修理"])
    for cut in (0, 3, 20, 40, len(content) - 1):
        with pytest.raises(IndexDamaged):
            WordBlock(content[:cut])
    with pytest.raises(IndexDamaged):
        WordBlock(b"NgSx" + content[4:])
    monkeypatch.setattr(word_block, "TERMS_VERSION", 99)
    with pytest.raises(IndexOutdated):
        WordBlock(content)
