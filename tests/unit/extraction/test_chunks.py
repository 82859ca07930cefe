"""Chunks: within their size, nothing left out, and cut where the author cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.errors import InvalidValue
from nagaya.extraction.blocks import Block
from nagaya.extraction.chunks import Chunk, Strategy, chunked, text_of
from nagaya.kernel.tokens import estimate_tokens

SMALL = Strategy(100, 20)


def paragraph(text: str, page: int | None = None) -> Block:
    return Block("paragraph", text, 0, page)


def heading(text: str, level: int = 1, page: int | None = None) -> Block:
    return Block("heading", text, level, page)


def japanese(count: int) -> str:
    return "".join(f"第{number}条の規定により、加藤屋根工業は倉庫の屋根を修理する。" for number in range(count))


def english(count: int) -> str:
    return " ".join(
        f"Under article {number} Kato Roofing repairs the roof of the warehouse." for number in range(count)
    )


def sound(blocks: Sequence[Block], strategy: Strategy) -> list[Chunk]:
    """The chunks, after what must hold of all chunks has been looked at."""
    chunks = list(chunked(blocks, strategy))
    text = text_of(blocks)
    covered = bytearray(len(text))
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert estimate_tokens(chunk.text) <= strategy.max_chunk_size_tokens
        assert chunk.text.endswith(text[chunk.start : chunk.end])
        assert chunk.text.strip()
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    for before, after in itertools.pairwise(chunks):
        assert before.start < after.start or before.end < after.end
        assert before.end < after.end
        if after.start < before.end:
            repeated = text[after.start : before.end]
            assert estimate_tokens(repeated) <= strategy.chunk_overlap_tokens + 1
    assert not [
        character for character, seen in zip(text, covered, strict=True) if not seen and not character.isspace()
    ]
    return chunks


_TEXTS = st.one_of(
    st.integers(1, 30).map(japanese),
    st.integers(1, 30).map(english),
    st.text(min_size=1, max_size=400),
    st.integers(1, 3000).map(lambda size: "x" * size),
    st.integers(1, 1500).map(lambda size: "あ漢" * size),
    st.integers(1, 900).map(lambda size: "1.,;" * size),
    st.integers(1, 300).map(lambda size: "😀 " * size),
).map(str.strip)


@st.composite
def documents(draw: st.DrawFn) -> list[Block]:
    made = []
    for kind, text, level in draw(
        st.lists(
            st.tuples(
                st.sampled_from(["heading", "paragraph", "table_row", "code", "list_item"]), _TEXTS, st.integers(0, 3)
            ),
            max_size=8,
        )
    ):
        if kind in ("heading", "table_row"):
            text = " ".join(text.split())
            level = max(1, level) if kind == "heading" else min(1, level)
        if text:
            made.append(Block(kind, text, level))  # type: ignore[arg-type]  # one of the five above
    return made


@settings(max_examples=150, deadline=None)
@given(documents(), st.integers(100, 300), st.data())
def test_nothing_is_left_out_and_no_chunk_is_too_long(blocks: list[Block], size: int, data: st.DataObject) -> None:
    strategy = Strategy(size, data.draw(st.integers(0, size // 2)))
    assert sound(blocks, strategy) == list(chunked(iter(blocks), strategy))


@pytest.mark.parametrize("text", [japanese(60), english(60)], ids=["japanese", "english"])
def test_chunks_begin_and_end_with_sentences_and_repeat_whole_ones(text: str) -> None:
    chunks = sound([paragraph(text)], Strategy(200, 80))
    assert len(chunks) > 5
    for chunk in chunks:
        assert chunk.text[0] in "第U"
        assert chunk.text[-1] in "。."
        assert estimate_tokens(chunk.text) > 150 or chunk is chunks[-1]
    for before, after in itertools.pairwise(chunks):
        assert before.end > after.start


def test_without_overlap_nothing_is_repeated() -> None:
    chunks = sound([paragraph(english(60))], Strategy(100, 0))
    assert all(after.start >= before.end for before, after in itertools.pairwise(chunks))


def test_a_chunk_knows_the_headings_above_it_and_its_page() -> None:
    blocks = [
        heading("Report"), paragraph(english(6), 1),
        heading("Roofs", 2), paragraph(english(6), 2),
        heading("Tiles", 3), paragraph(japanese(4), 3),
        heading("Costs", 2, 4), paragraph(english(6), 4),
    ]  # fmt: skip
    chunks = sound(blocks, SMALL)
    paths = list(dict.fromkeys(chunk.headings for chunk in chunks))
    assert paths == [("Report",), ("Report", "Roofs"), ("Report", "Roofs", "Tiles"), ("Report", "Costs")]
    costs = [chunk for chunk in chunks if chunk.headings == ("Report", "Costs")]
    assert costs[0].text.startswith("Costs\n")
    assert {chunk.page for chunk in costs} == {4}


def test_small_sections_share_a_chunk_under_what_is_above_them_all() -> None:
    blocks = [heading("FAQ")]
    for number in range(4):
        blocks += [heading(f"Question {number}", 2), paragraph("Yes.")]
    (chunk,) = sound(blocks, SMALL)
    assert chunk.headings == ("FAQ",)


def test_a_heading_is_not_left_alone_at_the_end_of_a_chunk() -> None:
    blocks = [paragraph(english(5)), heading("Costs"), paragraph(english(5))]
    for size in range(100, 140):
        for chunk in sound(blocks, Strategy(size, 0)):
            assert not chunk.text.endswith("\nCosts")


def test_every_chunk_of_a_table_has_its_first_row() -> None:
    rows = [Block("table_row", "Item | Price", 0)]
    rows += [Block("table_row", f"Tile {number} | {number * 100}", 1) for number in range(100)]
    chunks = sound(rows, SMALL)
    assert len(chunks) > 5
    assert all(chunk.text.startswith("Item | Price\n") for chunk in chunks)
    assert all(chunk.text.count("Item | Price") == 1 for chunk in chunks)


def test_a_first_row_that_would_fill_every_chunk_is_not_repeated() -> None:
    rows = [Block("table_row", " | ".join(f"Column {number}" for number in range(20)), 0)]
    rows += [Block("table_row", f"Tile {number} | {number * 100}", 1) for number in range(50)]
    assert sum("Column" in chunk.text for chunk in sound(rows, SMALL)) <= 2


def test_a_line_without_end_is_cut_and_every_part_found_again() -> None:
    for line in ("x" * 20_000, "漢字" * 5000, "🏠" * 3000, "0123456789" * 1000):
        chunks = sound([paragraph(line)], Strategy(100, 0))
        assert "".join(chunk.text for chunk in chunks) == line


def test_code_is_cut_between_lines() -> None:
    lines = [f"    value_{number} = compute({number})" for number in range(60)]
    for chunk in sound([Block("code", "\n".join(lines))], SMALL):
        assert set(chunk.text.splitlines()) <= set(lines)


def test_what_is_held_does_not_grow_with_the_document() -> None:
    taken = 0

    def endless() -> itertools.chain[Block]:
        def blocks():  # type: ignore[no-untyped-def]
            nonlocal taken
            while True:
                taken += 1
                yield paragraph("The roof is old.")

        return itertools.chain(blocks())

    next(chunked(endless(), SMALL))
    assert taken < 100


@pytest.mark.parametrize(("size", "overlap"), [(99, 0), (4097, 0), (100, 51), (800, -1)])
def test_a_strategy_outside_its_limits_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(InvalidValue):
        Strategy(size, overlap)


def test_the_strategy_is_that_of_openai_where_none_is_given() -> None:
    assert Strategy() == Strategy(800, 400)
    assert list(chunked([paragraph("Hi.")])) == [Chunk(0, "Hi.", (), None, 0, 3)]


def test_a_document_without_blocks_has_no_chunks() -> None:
    assert list(chunked([])) == []
