"""A catalog against a plain model: whatever is added, deleted, changed and merged, and in whichever order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nagaya.errors import Conflict
from nagaya.indexes.catalog import CLEAN_AT, MERGE_AT, Catalog, Piece, decode_catalog, encode_catalog

DOCUMENTS = st.sampled_from(["a", "b", "c"])
Content = dict[str, dict[str, Any]]


class Library(RuleBasedStateMachine):
    """Documents with their attributes, in a dictionary; and the same by way of segments and a catalog."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Content = {}
        self.catalog = Catalog()
        self.stored: dict[str, Content] = {}
        self.merging: tuple[Catalog, list[Piece], Content] | None = None
        self.names = 0

    def store(self, content: Content) -> str:
        self.names += 1
        name = f"s{self.names}"
        self.stored[name] = content
        return name

    def read(self, catalog: Catalog, piece: Piece) -> Content:
        gone = catalog.deleted_from(piece)
        found = {name: each for name, each in self.stored[piece.name].items() if name not in gone}
        return found | {name: dict(each) for name, each in catalog.attributes_in(piece).items() if name in found}

    @rule(document=DOCUMENTS, value=st.integers(0, 3))
    def add(self, document: str, value: int) -> None:
        """A document is added, or its content replaced."""
        self.catalog = self.catalog.without_documents([document])
        self.catalog = self.catalog.with_segment(self.store({document: {"n": value}}), 1, 10)
        self.model[document] = {"n": value}

    @rule(document=DOCUMENTS)
    def delete(self, document: str) -> None:
        self.catalog = self.catalog.without_documents([document])
        self.model.pop(document, None)

    @rule(document=DOCUMENTS, value=st.integers(4, 9))
    def change(self, document: str, value: int) -> None:
        self.catalog = self.catalog.with_attributes(document, {"n": value})
        if document in self.model:
            self.model[document] = {"n": value}

    @precondition(lambda self: self.catalog.pieces and self.merging is None)
    @rule(picks=st.lists(st.integers(0, 20), min_size=1, max_size=3))
    def begin_to_merge(self, picks: list[int]) -> None:
        pieces = list(
            {
                piece.name: piece for pick in picks for piece in [self.catalog.pieces[pick % len(self.catalog.pieces)]]
            }.values()
        )
        content: Content = {}
        for piece in pieces:
            content |= self.read(self.catalog, piece)
        self.merging = self.catalog, pieces, content

    @precondition(lambda self: self.merging is not None)
    @rule()
    def end_the_merge(self) -> None:
        assert self.merging is not None
        since, pieces, content = self.merging
        into = (self.store(content), len(content), 10) if content else None
        self.catalog = self.catalog.with_merged(pieces, into, since=since)
        self.merging = None

    @rule()
    def keep(self) -> None:
        self.catalog = decode_catalog(encode_catalog(self.catalog))

    @precondition(lambda self: self.merging is None)
    @rule()
    def clean(self) -> None:
        while pieces := self.catalog.to_clean():
            content = self.read(self.catalog, pieces[0])
            into = (self.store(content), len(content), 10) if content else None
            self.catalog = self.catalog.with_merged(pieces, into, since=self.catalog)
        held = [name for piece in self.catalog.pieces for name in self.stored[piece.name]]
        assert sorted(held) == sorted(self.model)

    @invariant()
    def what_is_read_is_what_there_is(self) -> None:
        found = [pair for piece in self.catalog.pieces for pair in self.read(self.catalog, piece).items()]
        assert len(found) == len(self.model)
        assert dict(found) == self.model


TestLibrary = Library.TestCase
TestLibrary.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


def test_eight_segments_of_a_size_are_merged_and_a_large_one_is_left_alone() -> None:
    catalog = Catalog().with_segment("large", 100_000, 1)
    for number in range(MERGE_AT - 1):
        catalog = catalog.with_segment(f"s{number}", 10, 1)
    assert catalog.to_merge() == []
    catalog = catalog.with_segment("last", 64, 1)
    assert [piece.name for piece in catalog.to_merge()] == [f"s{number}" for number in range(MERGE_AT - 1)] + ["last"]


def test_segments_stay_few_however_many_are_added() -> None:
    catalog = Catalog()
    for number in range(2_000):
        catalog = catalog.with_segment(f"s{number}", 1, 1)
        while pieces := catalog.to_merge():
            merged = (f"m{number}-{catalog.number}", sum(piece.chunks for piece in pieces), 1)
            catalog = catalog.with_merged(pieces, merged, since=catalog)
    assert catalog.chunks == 2_000
    assert len(catalog.pieces) < 4 * MERGE_AT


def test_after_many_changes_a_segment_is_cleaned() -> None:
    catalog = Catalog().with_segment("s", 1_000, 1).without_documents(["x"])
    assert catalog.to_merge() == []
    assert [piece.name for piece in catalog.to_clean()] == ["s"]
    catalog = catalog.without_documents(f"d{number}" for number in range(CLEAN_AT))
    (piece,) = catalog.to_merge()
    catalog = catalog.with_merged([piece], ("t", 400, 1), since=catalog)
    assert catalog.deleted == {}
    assert catalog.to_clean() == []


def test_of_two_that_merge_the_same_segment_the_second_is_refused() -> None:
    catalog = Catalog().with_segment("s", 1, 1)
    merged = catalog.with_merged(catalog.pieces, ("t", 1, 1), since=catalog)
    with pytest.raises(Conflict):
        merged.with_merged(catalog.pieces, ("u", 1, 1), since=catalog)
