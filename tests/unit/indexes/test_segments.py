"""Segments against a plain model: however chunks are spread, deleted and merged, the ranking is the same."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numpy", reason="needs nagaya[library]")

import numpy as np

from nagaya.errors import IndexDamaged, IndexOutdated, InvalidValue
from nagaya.indexes import segment as segment_module
from nagaya.indexes.filters import parse_filter
from nagaya.indexes.hybrid import search
from nagaya.indexes.query import Hit, Query
from nagaya.indexes.segment import (
    Entry,
    Part,
    build_segment,
    entry_of,
    merge_segments,
    open_segment,
)
from nagaya.indexes.terms import query_terms

MODEL = "model-a"
WORDS = ["roof", "mended", "policy", "屋根", "修理", "契約", "の", "RX-200"]


def part_of(*entries: Entry, deleted: tuple[str, ...] = (), attributes: Any = None, dimensions: int = 4) -> Part:
    model = MODEL if dimensions else ""
    return Part(open_segment(build_segment(entries, embedding=model, dimensions=dimensions)), deleted, attributes)


def near(hits: list[Hit]) -> list[tuple[str, float]]:
    return [(hit.chunk_id, hit.score) for hit in hits]


# --- the model ----------------------------------------------------------------------------------------------------


def expected_words(entries: list[Entry], text: str) -> dict[str, float]:
    """BM25 as its formula stands in the book, over a list."""
    average = max(1.0, sum(entry.length for entry in entries) / max(1, len(entries)))
    scores: Counter[str] = Counter()
    most = 0.0
    for term, weight in query_terms(text).items():
        having = sum(term in entry.terms for entry in entries)
        rarity = weight * math.log(1 + (len(entries) - having + 0.5) / (having + 0.5))
        most += rarity * 2.2
        for entry in entries:
            often = entry.terms.get(term, 0)
            if often:
                scores[entry.chunk_id] += rarity * often * 2.2 / (often + 1.2 * (0.25 + 0.75 * entry.length / average))
    return {entry.chunk_id: scores[entry.chunk_id] / (most or 1.0) for entry in entries}


def expected_cosine(entry: Entry, vector: list[float]) -> float:
    if entry.vector is None or not any(entry.vector) or not any(vector):
        return 0.0
    one, other = np.array(entry.vector, float), np.array(vector, float)
    return float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))


vectors = st.lists(st.integers(-9, 9), min_size=4, max_size=4)
texts = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


@st.composite
def libraries(draw: st.DrawFn) -> list[list[Entry]]:
    """Chunks of six documents, spread over segments; a document lies in one of them."""
    segments: list[list[Entry]] = [[] for _ in range(draw(st.integers(1, 4)))]
    for number in range(draw(st.integers(0, 6))):
        mine = draw(st.sampled_from(segments))
        lang = draw(st.sampled_from(["ja", "en"]))
        for chunk in range(draw(st.integers(1, 4))):
            vector = draw(st.none() | vectors)
            mine.append(entry_of(f"d{number}/{chunk}", f"d{number}", draw(texts), vector, {"lang": lang, "n": number}))
    return segments


@settings(max_examples=150, deadline=None)
@given(libraries(), st.frozensets(st.sampled_from([f"d{n}" for n in range(6)])), texts, vectors, st.integers(1, 30))
def test_spread_deleted_and_merged_it_ranks_as_one_list(
    spread: list[list[Entry]], deleted: frozenset[str], text: str, vector: list[float], limit: int
) -> None:
    query = Query(text, vector, MODEL, limit)
    parts = [part_of(*entries, deleted=tuple(deleted)) for entries in spread]
    left = [entry for entries in spread for entry in entries if entry.document_id not in deleted]
    found = search(parts, query)
    assert near(found) == near(search([part_of(*left)], query))
    assert near(found) == near(search([Part(open_segment(merge_segments(parts)))], query))
    words = expected_words(left, text)
    by_id = {entry.chunk_id: entry for entry in left}
    assert {hit.document_id for hit in found} <= by_id.keys() | {entry.document_id for entry in left}
    for hit in found:
        assert hit.words == pytest.approx(words[hit.chunk_id], abs=1e-5)
        assert hit.cosine == pytest.approx(expected_cosine(by_id[hit.chunk_id], vector), abs=0.02)


@settings(max_examples=100, deadline=None)
@given(libraries(), texts, vectors, st.integers(1, 5), st.sampled_from(["ja", "en"]), st.integers(0, 6))
def test_a_filter_comes_before_the_ranking(
    spread: list[list[Entry]], text: str, vector: list[float], limit: int, lang: str, above: int
) -> None:
    tested = parse_filter(
        {
            "type": "and",
            "filters": [{"type": "eq", "key": "lang", "value": lang}, {"type": "gte", "key": "n", "value": above}],
        }
    )
    parts = [part_of(*entries) for entries in spread]
    every = search(parts, Query(text, vector, MODEL, 1000))
    wanted = [hit for hit in every if hit.attributes["lang"] == lang and hit.attributes["n"] >= above]  # type: ignore[operator]  # a number there
    assert near(search(parts, Query(text, vector, MODEL, limit, tested))) == near(wanted)[:limit]


def test_a_merged_segment_is_the_one_that_would_have_been_built() -> None:
    rows = [
        entry_of(f"c{n}", f"d{n % 3}", f"{WORDS[n % 8]} {WORDS[n % 5]}", [n, 1, 2, 3], {"n": n % 3}) for n in range(20)
    ]
    whole = build_segment(rows, embedding=MODEL, dimensions=4)
    assert merge_segments([part_of(*rows[:7]), part_of(*rows[7:7]), part_of(*rows[7:])]) == whole


def test_one_in_a_thousand_is_found_by_a_narrow_filter_with_its_vector() -> None:
    rows = [entry_of(f"c{n}", f"d{n}", "roof", [1, n % 7, 1, 1], {"n": n}) for n in range(1000)]
    tested = parse_filter({"type": "in", "key": "n", "value": [3, 500, 999]})
    found = search([part_of(*rows)], Query("policy", [1, 0, 0, 0], MODEL, 3, tested))
    assert {hit.chunk_id for hit in found} == {"c3", "c500", "c999"}
    assert all(hit.cosine > 0 for hit in found)


def test_changed_attributes_hold_at_once_and_after_merging() -> None:
    part = part_of(
        entry_of("a/0", "a", "roof", None, {"x": 1}), entry_of("b/0", "b", "roof"), attributes={"a": {"x": 2}, "z": {}}
    )
    tested = parse_filter({"type": "eq", "key": "x", "value": 2})
    for each in (part, Part(open_segment(merge_segments([part])))):
        (hit,) = search([each], Query("roof", filter=tested))
        assert (hit.chunk_id, hit.attributes) == ("a/0", {"x": 2})


def test_a_vector_of_another_model_is_never_compared() -> None:
    part = part_of(entry_of("a", "a", "roof", [1, 0, 0, 0]))
    assert search([part], Query("nothing", [1, 0, 0, 0], "model-b")) == []
    (hit,) = search([part], Query("roof", [1, 0], "model-b"))
    assert hit.cosine == 0
    with pytest.raises(InvalidValue):
        search([part], Query("roof", [1, 0], MODEL))
    with pytest.raises(InvalidValue):
        merge_segments([part, Part(open_segment(build_segment([], embedding="model-b", dimensions=4)))])


@pytest.mark.parametrize("vector", [[1.0, 2.0], [math.nan, 0, 0, 0], [math.inf, 0, 0, 0]])
def test_a_vector_that_is_none_is_refused(vector: list[float]) -> None:
    with pytest.raises(InvalidValue):
        part_of(entry_of("a", "a", "roof", vector))
    with pytest.raises(InvalidValue):
        search([part_of(entry_of("a", "a", "roof", [1, 0, 0, 0]))], Query("roof", vector, MODEL))


@pytest.mark.parametrize("limit", [0, 1001])
def test_a_limit_out_of_bounds_is_refused(limit: int) -> None:
    with pytest.raises(InvalidValue):
        search([part_of()], Query("roof", limit=limit))


def test_scores_do_not_depend_on_where_a_vector_stands() -> None:
    # 32-bit sums depend on their order, and that on the place in a block; whole numbers do not.
    random = np.random.default_rng(7)
    rows = random.standard_normal((1500, 512))
    asked = random.standard_normal(512)
    one = part_of(*(entry_of(f"c{n:04}", "d", "", row) for n, row in enumerate(rows)), dimensions=512)
    other = part_of(*(entry_of(f"c{n:04}", "d", "", rows[n]) for n in reversed(range(1500))), dimensions=512)
    query = Query("", asked, MODEL, 1000)
    assert near(search([one], query)) == near(search([other], query))


def test_what_eight_bits_cost_is_small() -> None:
    random = np.random.default_rng(8)
    rows = random.standard_normal((2000, 512)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    part = part_of(*(entry_of(f"{n}", "d", "", row) for n, row in enumerate(rows)), dimensions=512)
    kept = 0
    for number in range(20):
        asked = rows[number] + 0.5 * rows[number + 20]
        exact = {str(n) for n in np.argsort(-(rows @ asked))[:10]}
        kept += len(exact & {hit.chunk_id for hit in search([part], Query("", asked, MODEL, 10))})
    assert kept >= 190


def test_a_segment_of_more_chunks_than_two_bytes_can_number() -> None:
    rows = [entry_of(f"c{n}", f"d{n // 100}", "roof" if n % 2 else "屋根") for n in range(70_000)]
    rows.append(entry_of("last", "z", "gutter roof"))
    part = Part(open_segment(build_segment(rows)), deleted=["d1"])
    assert part.segment.posting_chunks.dtype.itemsize == 4
    (hit,) = search([part], Query("gutters"))
    assert hit.chunk_id == "last"
    merged = Part(open_segment(merge_segments([part_of(dimensions=0), Part(part.segment, ["d1"])])))
    assert merged.segment.chunks == 69_901
    assert near(search([merged], Query("roof gutter 屋根", limit=3))) == near(
        search([part], Query("roof gutter 屋根", limit=3))
    )


def test_bounds_of_a_segment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue):
        build_segment([], dimensions=-1)
    with pytest.raises(InvalidValue):
        merge_segments([])
    monkeypatch.setattr(segment_module, "MAX_CHUNKS", 1)
    with pytest.raises(InvalidValue):
        part_of(entry_of("a", "a", "roof"), entry_of("b", "a", "roof"))


def test_scores_stay_between_nothing_and_one() -> None:
    part = part_of(entry_of("a", "a", "roof " * 300, [1, 2, 3, 4]), entry_of("b", "b", "roof", [-1, -2, -3, -4]))
    hits = search([part], Query("roof", [1, 2, 3, 4], MODEL))
    assert [hit.chunk_id for hit in hits] == ["a", "b"]
    assert all(0 < hit.score <= 1 for hit in hits)
    assert hits[0].cosine == pytest.approx(1, abs=1e-3)


# --- bytes --------------------------------------------------------------------------------------------------------

SOUND = build_segment(
    [entry_of(f"c{n}", f"d{n % 2}", "roof 屋根の修理", [n, 1, 2, 3], {"n": n}) for n in range(5)],
    embedding=MODEL,
    dimensions=4,
)


def survives(content: bytes) -> None:
    """Opened and searched, or refused with an error of ours."""
    try:
        part = Part(open_segment(content), ("d1",))
        tested = parse_filter({"type": "gt", "key": "n", "value": 1})
        search([part], Query("屋根 roof", [1, 2, 3, 4], MODEL, 10, tested))
        merge_segments([part])
    except (IndexDamaged, IndexOutdated, InvalidValue):
        pass


def test_every_shortened_segment_is_refused_or_harmless() -> None:
    for length in range(len(SOUND)):
        survives(SOUND[:length])
    for length in (0, 3, 7, 8, 40, 200):
        with pytest.raises(IndexDamaged):
            open_segment(SOUND[:length])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_never_crash(changes: list[tuple[int, int]]) -> None:
    content = bytearray(SOUND)
    for at, value in changes:
        content[at] = value
    with np.errstate(all="ignore"):
        survives(bytes(content))


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(IndexDamaged):
        open_segment(content)


def altered(**changes: Any) -> bytes:
    length = int.from_bytes(SOUND[4:8], "little")
    head = json.loads(SOUND[8 : 8 + length]) | changes
    return SOUND[:8] + json.dumps(head, separators=(",", ":")).encode().ljust(length) + SOUND[8 + length :]


@pytest.mark.parametrize("changes", [{"format": 2}, {"terms": 99}])
def test_a_segment_of_another_version_says_so(changes: dict[str, int]) -> None:
    with pytest.raises(IndexOutdated):
        open_segment(altered(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"chunks": 6}, {"chunks": -1}, {"chunks": 1 << 40}, {"dimensions": 5}, {"dimensions": -4}, {"documents": 1}, {"keys": 1},
        {"postings": 1 << 50}, {"attribute_sets": 1}, {"sections": {}}, {"embedding": None}, {"more": 1},
    ],
)  # fmt: skip
def test_a_head_that_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    assert open_segment(altered()).chunks == 5
    with pytest.raises(IndexDamaged):
        open_segment(altered(**changes))


def test_a_list_that_is_none_is_refused_when_it_is_needed() -> None:
    at = SOUND.index(b'[{"n":')
    content = SOUND[:at] + b"x" + SOUND[at + 1 :]
    with pytest.raises(IndexDamaged):
        _ = open_segment(content).attribute_sets
