"""An immutable piece of a search index: chunks of documents with their vectors and terms, in bytes that open at once.

::

    magic  length of the head   head (JSON)   arrays and lists, each from a multiple of 64
    4      4                    …             …

Arrays are little-endian and are used where they lie, without a copy. Vectors are kept as whole numbers of eight bits,
a quarter of their size; what that costs in quality is in decision 13. A term is 64 bits of its hash, with the chunks
that hold it and how often (its postings).

The bytes hold texts' words and vectors: they are to be sealed by whoever stores them. The seal also tells every changed
byte; here only what would lead astray (a place outside, a list too short) is refused.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from nagaya.errors import IndexDamaged, IndexOutdated, InvalidValue
from nagaya.indexes.filters import Attributes, AttributeValue, Filter
from nagaya.indexes.terms import TERMS_VERSION, term_counts, term_key

FORMAT: Final = 1
MAX_CHUNKS: Final = 1 << 24
MAX_DIMENSIONS: Final = 8192
LEVELS: Final = 127
"""A number of a vector is kept as one of -127 … 127, of which 127 is the vector's largest."""

_MAGIC: Final = b"NgSx"
_ALIGN: Final = 64
_MAX_COUNT: Final = 255
_NAME_BYTES: Final = 100

Array: TypeAlias = npt.NDArray[Any]


class Entry(msgspec.Struct, frozen=True):
    """One chunk of a document, ready for a segment. ``vector`` has any length but zero, or is left out where the
    chunk has none; ``length`` is the sum of ``terms``."""

    chunk_id: str
    document_id: str
    attributes: Attributes
    vector: Sequence[float] | Array | None
    terms: Mapping[str, int]

    @property
    def length(self) -> int:
        return sum(self.terms.values())


def entry_of(
    chunk_id: str,
    document_id: str,
    text: str,
    vector: Sequence[float] | Array | None = None,
    attributes: Attributes | None = None,
) -> Entry:
    """The entry of a text. Repeatable: the same text gives the same entry."""
    return Entry(chunk_id, document_id, attributes or {}, vector, term_counts(text))


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    terms: int
    embedding: str
    dimensions: int
    chunks: int
    documents: int
    attribute_sets: int
    keys: int
    postings: int
    sections: dict[str, tuple[int, int]]


class Segment:
    """An opened segment. Chunks and documents are numbered from 0; what it gives out is to be read only.

    ``embedding`` names the model the vectors come from (empty, with no dimensions, where there are none).
    """

    def __init__(self, head: _Head, buffer: memoryview) -> None:
        self.embedding = head.embedding
        self.dimensions = head.dimensions
        self.chunks = head.chunks
        # With what Python needs for the names of chunks and documents.
        self.size_bytes = len(buffer) + _NAME_BYTES * (head.chunks + head.documents)
        self._head = head
        self._buffer = buffer
        self.vectors = self._array("vectors", np.int8, head.chunks * head.dimensions).reshape(
            head.chunks, head.dimensions
        )
        self.inverse_norms = self._array("inverse_norms", np.float32, head.chunks)
        self.lengths = self._array("lengths", np.uint32, head.chunks)
        self.document_of = self._array("document_of", np.uint32, head.chunks)
        self.keys = self._array("keys", np.uint64, head.keys)
        self.starts = self._array("starts", np.uint32, head.keys + 1)
        self.posting_chunks = self._array("posting_chunks", _places(head.chunks), head.postings)
        self.posting_counts = self._array("posting_counts", np.uint8, head.postings)
        self.set_of = self._array("set_of", np.uint32, head.documents)
        self._check_places()
        self.chunk_ids = self._list("chunk_ids", list[str], head.chunks)
        self.document_ids = self._list("document_ids", list[str], head.documents)
        self._attribute_sets: list[dict[str, AttributeValue]] | None = None

    @property
    def attribute_sets(self) -> list[dict[str, AttributeValue]]:
        """The attributes that documents here have; each document has one of these sets (``set_of``)."""
        if self._attribute_sets is None:
            kind = list[dict[str, AttributeValue]]
            self._attribute_sets = self._list("attribute_sets", kind, self._head.attribute_sets)
        return self._attribute_sets

    def document(self, document_id: str) -> int | None:
        """The number of a document, or None."""
        found = bisect_left(self.document_ids, document_id)
        return found if found < len(self.document_ids) and self.document_ids[found] == document_id else None

    def postings(self, key: int) -> tuple[Array, Array]:
        """The chunks that hold a term, in order, and how often each does (255 stands for more, too)."""
        at = int(np.searchsorted(self.keys, np.uint64(key)))
        if at == len(self.keys) or int(self.keys[at]) != key:
            return self.posting_chunks[:0], self.posting_counts[:0]
        place = slice(int(self.starts[at]), int(self.starts[at + 1]))
        return self.posting_chunks[place], self.posting_counts[place]

    # --- inside -----------------------------------------------------------------------------------------------

    def _section(self, name: str, size: int | None = None) -> memoryview:
        start, length = self._head.sections.get(name, (-1, -1))
        if start < 0 or length < 0 or start + length > len(self._buffer) or size not in (None, length):
            raise IndexDamaged
        return self._buffer[start : start + length]

    def _array(self, name: str, kind: Any, count: int) -> Array:
        kind = np.dtype(kind).newbyteorder("<")
        return np.frombuffer(self._section(name, count * kind.itemsize), dtype=kind)

    def _list(self, name: str, kind: Any, count: int) -> Any:
        try:
            found = msgspec.json.decode(self._section(name), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise IndexDamaged from None
        if len(found) != count:
            raise IndexDamaged
        return found

    def _check_places(self) -> None:
        head = self._head
        sound = (
            self.starts[0] == 0
            and self.starts[-1] == head.postings
            and bool(np.all(self.starts[:-1] <= self.starts[1:]))
            and bool(np.all(self.keys[:-1] < self.keys[1:]))
            and _all_below(self.posting_chunks, head.chunks)
            and _all_below(self.document_of, head.documents)
            and _all_below(self.set_of, head.attribute_sets)
            and bool(np.all(np.isfinite(self.inverse_norms)))
        )
        if not sound:
            raise IndexDamaged


def open_segment(content: bytes | bytearray | memoryview) -> Segment:
    """A segment from its bytes, which it goes on using. Raises ``IndexDamaged``; ``IndexOutdated`` where it was made in
    another way than this program's. A segment of 10,000 chunks opens in a few milliseconds."""
    buffer = memoryview(content).toreadonly().cast("B")
    if len(buffer) < 8 or bytes(buffer[:4]) != _MAGIC:
        raise IndexDamaged
    length = int.from_bytes(buffer[4:8], "little")
    try:
        head = msgspec.json.decode(buffer[8 : 8 + length], type=_Head)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise IndexDamaged from None
    if head.format != FORMAT or head.terms != TERMS_VERSION:
        raise IndexOutdated(found=f"{head.format}.{head.terms}", known=f"{FORMAT}.{TERMS_VERSION}")
    counts = (head.documents, head.attribute_sets, head.keys, head.postings)
    if not 0 <= head.chunks <= MAX_CHUNKS or not 0 <= head.dimensions <= MAX_DIMENSIONS or min(counts) < 0:
        raise IndexDamaged
    return Segment(head, buffer)


class Part:
    """A segment with what was changed since it was made: documents deleted from it, and documents whose attributes are
    others now. Its arrays are made once and serve every search until the next change."""

    def __init__(
        self, segment: Segment, deleted: Iterable[str] = (), attributes: Mapping[str, Attributes] | None = None
    ) -> None:
        self.segment = segment
        self._changed: dict[int, Attributes] = {}
        for document_id, changed in (attributes or {}).items():
            if (number := segment.document(document_id)) is not None:
                self._changed[number] = changed
        gone = [number for each in deleted if (number := segment.document(each)) is not None]
        self.kept: Array = np.ones(segment.chunks, dtype=bool)
        if gone:
            self.kept = ~np.isin(segment.document_of, np.array(gone, dtype=np.uint32))
        self.whole = not gone
        self.chunks = int(np.count_nonzero(self.kept))
        self.length = int(segment.lengths[self.kept].sum(dtype=np.uint64))

    def attributes_of(self, document: int) -> Attributes:
        """The attributes that a document has now."""
        changed = self._changed.get(document)
        return self.segment.attribute_sets[int(self.segment.set_of[document])] if changed is None else changed

    def allowed(self, tested: Filter | None) -> Array:
        """For each chunk whether it is left and the filter holds for its document. Documents with the same attributes
        are asked once: 0.3 µs for each set of them."""
        if tested is None:
            return self.kept
        segment = self.segment
        holds = np.fromiter(map(tested, segment.attribute_sets), dtype=bool, count=len(segment.attribute_sets))
        documents = holds[segment.set_of]
        for number, changed in self._changed.items():
            documents[number] = tested(changed)
        allowed: Array = documents[segment.document_of] & self.kept
        return allowed


# --- making -------------------------------------------------------------------------------------------------------


def build_segment(entries: Iterable[Entry], *, embedding: str = "", dimensions: int = 0) -> bytes:
    """The bytes of a segment of these chunks, in this order.

    ``embedding`` and ``dimensions``: the model of the vectors and how many numbers each has. A document's attributes
    are those of its last chunk. Takes about 0.2 ms for a chunk of 400 characters: to be run in a thread. Raises
    ``InvalidValue`` where a vector has another number of dimensions or is not finite, or there are too many chunks.
    """
    rows = list(entries)
    if len(rows) > MAX_CHUNKS:
        raise InvalidValue(at="entries", detail=f"at most {MAX_CHUNKS} chunks")
    if not 0 <= dimensions <= MAX_DIMENSIONS:
        raise InvalidValue(at="dimensions", detail=f"0 to {MAX_DIMENSIONS}")
    attributes = {row.document_id: row.attributes for row in rows}
    documents = sorted(attributes)
    number_of = {document_id: number for number, document_id in enumerate(documents)}
    return _written(
        embedding,
        _quantised([row.vector for row in rows], dimensions),
        lengths=np.array([row.length for row in rows], dtype=np.uint32),
        document_of=np.array([number_of[row.document_id] for row in rows], dtype=np.uint32),
        occurrences=_occurrences(rows),
        chunk_ids=[row.chunk_id for row in rows],
        document_ids=documents,
        attributes=[attributes[document_id] for document_id in documents],
    )


class _Occurrences(NamedTuple):
    """Which terms occur where. ``packed``: for each occurrence the place of its term in ``keys`` (32 bits), its chunk
    (24 bits) and how often (8 bits) in one number, so that one plain sort brings all into order."""

    keys: Array
    packed: Array


def _occurrences(rows: Sequence[Entry]) -> _Occurrences:
    # Hashing is the slow part, so each term of the batch is hashed once; nothing of it outlives the batch.
    numbers: dict[str, int] = {}
    for row in rows:
        for term in row.terms:
            numbers.setdefault(term, len(numbers))
    keys, places = np.unique(np.fromiter(map(term_key, numbers), np.uint64, count=len(numbers)), return_inverse=True)
    sizes = [len(row.terms) for row in rows]
    each = itertools.chain.from_iterable(row.terms for row in rows)
    found = places[np.fromiter(map(numbers.__getitem__, each), np.intp, count=sum(sizes))]
    often = itertools.chain.from_iterable(row.terms.values() for row in rows)
    counts = np.fromiter(often, np.uint32, count=sum(sizes))
    chunks = np.repeat(np.arange(len(rows), dtype=np.uint64), sizes)
    return _Occurrences(keys, _packed(found, chunks, np.minimum(counts, _MAX_COUNT)))


def _packed(places: Array, chunks: Array, counts: Array) -> Array:
    packed: Array = (places.astype(np.uint64) << np.uint64(32)) | (chunks.astype(np.uint64) << np.uint64(8))
    packed |= counts.astype(np.uint64)
    return packed


def _quantised(vectors: Sequence[Sequence[float] | Array | None], dimensions: int) -> Array:
    rows = np.zeros((len(vectors), dimensions), dtype=np.float32)
    for number, vector in enumerate(vectors):
        if vector is None or not dimensions:
            continue
        if len(vector) != dimensions:
            raise InvalidValue(at="vector", detail=f"{dimensions} numbers")
        rows[number] = vector
    if not np.all(np.isfinite(rows)):
        raise InvalidValue(at="vector", detail="finite numbers")
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    scale = np.divide(LEVELS, largest, out=np.zeros_like(largest), where=largest > 1e-30)
    quantised: Array = np.rint(rows * scale).astype(np.int8)
    return quantised


def _inverse_norms(vectors: Array) -> Array:
    inverse = np.zeros(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), 4096):
        block = vectors[start : start + 4096].astype(np.float32)
        norms = np.sqrt(np.einsum("ij,ij->i", block, block))
        inverse[start : start + 4096] = np.divide(1, norms, out=np.zeros_like(norms), where=norms > 0)
    return inverse


def _written(
    embedding: str,
    vectors: Array,
    *,
    lengths: Array,
    document_of: Array,
    occurrences: _Occurrences,
    chunk_ids: Sequence[str],
    document_ids: Sequence[str],
    attributes: Sequence[Attributes],
) -> bytes:
    keys, starts, posting_chunks, posting_counts = _postings(occurrences, len(chunk_ids))
    sets, set_of = _distinct(attributes)
    sections: dict[str, bytes | Array] = {
        "vectors": vectors,
        "inverse_norms": _inverse_norms(vectors),
        "lengths": lengths,
        "document_of": document_of,
        "keys": keys,
        "starts": starts,
        "posting_chunks": posting_chunks,
        "posting_counts": posting_counts,
        "set_of": set_of,
        "chunk_ids": msgspec.json.encode(chunk_ids),
        "document_ids": msgspec.json.encode(document_ids),
        "attribute_sets": b"[" + b",".join(sets) + b"]",
    }
    bodies = {name: body if isinstance(body, bytes) else _little(body) for name, body in sections.items()}
    head = _Head(
        format=FORMAT,
        terms=TERMS_VERSION,
        embedding=embedding,
        dimensions=vectors.shape[1],
        chunks=len(chunk_ids),
        documents=len(document_ids),
        attribute_sets=len(sets),
        keys=len(keys),
        postings=len(posting_chunks),
        sections={},
    )
    return _laid_out(head, bodies)


def _laid_out(head: _Head, bodies: Mapping[str, bytes]) -> bytes:
    # The places of the sections stand in the head before them, so their digits need room that is known beforehand.
    reserved = len(msgspec.json.encode(head)) + sum(len(name) + 48 for name in bodies)
    at = _aligned(8 + reserved)
    for name, body in bodies.items():
        head.sections[name] = (at, len(body))
        at = _aligned(at + len(body))
    encoded = msgspec.json.encode(head).ljust(reserved)
    content = bytearray(at)
    content[: 8 + reserved] = _MAGIC + reserved.to_bytes(4, "little") + encoded
    for name, body in bodies.items():
        start = head.sections[name][0]
        content[start : start + len(body)] = body
    return bytes(content)


def _postings(occurrences: _Occurrences, total: int) -> tuple[Array, Array, Array, Array]:
    """The terms that occur at all, where each one's chunks begin, the chunks, and how often."""
    packed = np.sort(occurrences.packed)
    sizes = np.bincount((packed >> np.uint64(32)).astype(np.intp), minlength=len(occurrences.keys))
    starts = np.concatenate(([0], np.cumsum(sizes[sizes > 0]))).astype(np.uint32)
    chunks = (packed >> np.uint64(8)).astype(np.uint32) & np.uint32(MAX_CHUNKS - 1)
    return occurrences.keys[sizes > 0], starts, chunks.astype(_places(total)), packed.astype(np.uint8)


def _distinct(attributes: Sequence[Attributes]) -> tuple[list[bytes], Array]:
    """Each set of attributes once, as JSON, and which of them every document has."""
    numbers: dict[bytes, int] = {}
    codes = []
    for each in attributes:
        encoded = msgspec.json.encode(dict(each), order="sorted")
        codes.append(numbers.setdefault(encoded, len(numbers)))
    return list(numbers), np.array(codes, dtype=np.uint32)


# --- merging ------------------------------------------------------------------------------------------------------


def merge_segments(parts: Sequence[Part]) -> bytes:
    """One segment in place of several: what is left of their chunks, in order, as if it had been built together.

    A document's attributes are those of its last part. Raises ``InvalidValue`` where the vectors come from different
    models. Takes about 1 s for 100,000 chunks: to be run in a thread.
    """
    if len({(part.segment.embedding, part.segment.dimensions) for part in parts}) != 1:
        raise InvalidValue(at="parts", detail="one segment or more, with vectors of one model")
    kept = [(part.segment, part.kept) for part in parts]
    attributes: dict[str, Attributes] = {}
    for part in parts:
        for number in np.unique(part.segment.document_of[part.kept]).tolist():
            attributes[part.segment.document_ids[number]] = part.attributes_of(number)
    documents = sorted(attributes)
    number_of = {document_id: number for number, document_id in enumerate(documents)}
    renumbered = [
        np.array([number_of.get(document_id, 0) for document_id in segment.document_ids], dtype=np.uint32)
        for segment, _ in kept
    ]
    return _written(
        kept[0][0].embedding,
        np.concatenate([segment.vectors[keep] for segment, keep in kept]),
        lengths=np.concatenate([segment.lengths[keep] for segment, keep in kept]),
        document_of=np.concatenate(
            [numbers[segment.document_of[keep]] for numbers, (segment, keep) in zip(renumbered, kept, strict=True)]
        ),
        occurrences=_kept_occurrences(kept),
        chunk_ids=[
            chunk_id for segment, keep in kept for chunk_id in itertools.compress(segment.chunk_ids, keep.tolist())
        ],
        document_ids=documents,
        attributes=[attributes[document_id] for document_id in documents],
    )


def _kept_occurrences(kept: Sequence[tuple[Segment, Array]]) -> _Occurrences:
    keys = np.unique(np.concatenate([segment.keys for segment, _ in kept]))
    packed = []
    before = 0
    for segment, keep in kept:
        here = keep[segment.posting_chunks]
        places = np.repeat(np.searchsorted(keys, segment.keys), np.diff(segment.starts))[here]
        chunks = np.cumsum(keep, dtype=np.uint64) + np.uint64(before) - np.uint64(1)
        packed.append(_packed(places, chunks[segment.posting_chunks[here]], segment.posting_counts[here]))
        before += int(np.count_nonzero(keep))
    return _Occurrences(keys, np.concatenate(packed))


def _places(chunks: int) -> Any:
    return np.uint16 if chunks <= 1 << 16 else np.uint32


def _all_below(numbers: Array, limit: int) -> bool:
    return not len(numbers) or int(numbers.max()) < limit


def _aligned(at: int) -> int:
    return -(-at // _ALIGN) * _ALIGN


def _little(numbers: Array) -> bytes:
    return numbers.astype(numbers.dtype.newbyteorder("<"), copy=False).tobytes()
