"""Which segments an index has, and what was changed since they were made.

A catalog is a small value that its owner keeps in one sealed record and replaces by a conditional put; every method
gives a new one. Each change gets the next number. A segment remembers through which number it is ``clean``: a deletion
with a higher number concerns it, one with a lower does not. So a document may be deleted and added again, and a
deletion that comes while segments are being merged is not lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from nagaya.errors import Conflict
from nagaya.indexes.filters import Attributes, AttributeValue

MERGE_AT: Final = 8
"""Segments of about one size that become one."""
MAX_MERGED_CHUNKS: Final = 100_000
"""A segment of this size is not merged with others: writing it anew would cost more than reading one more."""
CLEAN_AT: Final = 512
"""Changes that are waited for before segments are written anew without what was deleted, unless asked for sooner."""
_SMALLEST: Final = 64


class Piece(msgspec.Struct, frozen=True):
    """One segment: the name of its sealed bytes, its chunks and size, and through which change it is clean."""

    name: str
    chunks: int
    size_bytes: int
    clean: int


class Changed(msgspec.Struct, frozen=True):
    """A document's attributes since change ``number``."""

    number: int
    attributes: dict[str, AttributeValue]


class Catalog(msgspec.Struct, frozen=True):
    """An index at one moment. ``number`` is that of the last change; a new index is ``Catalog()``."""

    number: int = 0
    pieces: tuple[Piece, ...] = ()
    deleted: dict[str, int] = {}
    attributes: dict[str, Changed] = {}

    @property
    def chunks(self) -> int:
        """Chunks in all segments, with those of deleted documents that are still to be cleaned away."""
        return sum(piece.chunks for piece in self.pieces)

    def with_segment(self, name: str, chunks: int, size_bytes: int) -> Catalog:
        """With one more segment, whose name no other has or had."""
        piece = Piece(name, chunks, size_bytes, self.number + 1)
        return self._next(pieces=(*self.pieces, piece))

    def without_documents(self, document_ids: Iterable[str]) -> Catalog:
        """With these documents deleted from every segment there is now. One that is not there is no error."""
        return self._next(deleted=self.deleted | dict.fromkeys(document_ids, self.number + 1))

    def with_attributes(self, document_id: str, attributes: Attributes) -> Catalog:
        """With other attributes for a document in every segment there is now."""
        changed = Changed(self.number + 1, dict(attributes))
        return self._next(attributes=self.attributes | {document_id: changed})

    def with_merged(self, merged: Sequence[Piece], into: tuple[str, int, int] | None, *, since: Catalog) -> Catalog:
        """With one segment (name, chunks, bytes; None where nothing was left) in place of those that were merged as
        they stood in ``since``. Raises ``Conflict`` where somebody else has merged one of them meanwhile."""
        names = {piece.name for piece in merged}
        if not names <= {piece.name for piece in self.pieces}:
            raise Conflict
        pieces = [piece for piece in self.pieces if piece.name not in names]
        if into is not None:
            pieces.append(Piece(*into, since.number))
        return self._next(pieces=tuple(pieces))

    def deleted_from(self, piece: Piece) -> list[str]:
        """The documents that the segment is to be read without."""
        return [document_id for document_id, number in self.deleted.items() if number > piece.clean]

    def attributes_in(self, piece: Piece) -> dict[str, Mapping[str, AttributeValue]]:
        """The documents that have other attributes than the segment says."""
        return {name: each.attributes for name, each in self.attributes.items() if each.number > piece.clean}

    def to_merge(self) -> list[Piece]:
        """The segments that should be merged next; none where all is well. Eight of about one size; or, after many
        changes, one that still holds what was deleted."""
        levels: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            if piece.chunks < MAX_MERGED_CHUNKS:
                levels.setdefault(_level(piece.chunks), []).append(piece)
        for _, pieces in sorted(levels.items()):
            if len(pieces) >= MERGE_AT:
                return pieces[:MERGE_AT]
        return self.to_clean() if len(self.deleted) + len(self.attributes) >= CLEAN_AT else []

    def to_clean(self) -> list[Piece]:
        """The segment that has waited longest among those that may still hold something deleted or changed; written
        anew (merged alone) it does not. None where every trace is gone."""
        last = max([*self.deleted.values(), *(each.number for each in self.attributes.values())], default=0)
        return sorted((piece for piece in self.pieces if piece.clean < last), key=lambda piece: piece.clean)[:1]

    def _next(
        self,
        *,
        pieces: tuple[Piece, ...] | None = None,
        deleted: dict[str, int] | None = None,
        attributes: dict[str, Changed] | None = None,
    ) -> Catalog:
        pieces = self.pieces if pieces is None else pieces
        deleted = self.deleted if deleted is None else deleted
        attributes = self.attributes if attributes is None else attributes
        # What every segment is clean of need not be remembered.
        least = min((piece.clean for piece in pieces), default=self.number + 1)
        return Catalog(
            self.number + 1,
            pieces,
            {name: number for name, number in deleted.items() if number > least},
            {name: each for name, each in attributes.items() if each.number > least},
        )


def _level(chunks: int) -> int:
    level = 0
    while chunks > _SMALLEST:
        chunks //= MERGE_AT
        level += 1
    return level


def encode_catalog(catalog: Catalog) -> bytes:
    """The catalog as a record's body."""
    return msgspec.json.encode(catalog)


def decode_catalog(body: bytes) -> Catalog:
    """The catalog of a record's body."""
    return msgspec.json.decode(body, type=Catalog)
