"""A document's text in pieces that can be embedded, found and cited.

Pieces follow what the author wrote: sections by their headings, sentences (Japanese and English alike), rows of a table
under its first row, lines of code. The same blocks and strategy always give the same chunks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from nagaya.errors import InvalidValue
from nagaya.extraction.blocks import BETWEEN_BLOCKS, Block, BlockKind
from nagaya.extraction.sentences import sentences
from nagaya.kernel.tokens import weigh, weight

MIN_CHUNK_TOKENS: Final = 100
MAX_CHUNK_TOKENS: Final = 4096
_SMALL_SECTION: Final = 4
"""A section under this fraction of a chunk shares it with the next: headings with a line each make no chunks alone."""
_REPEATED_HEAD: Final = 4
"""A table's first row is repeated in each of its chunks unless it takes more than this fraction of one."""
_CUT_EXTRA: Final = 1.0
"""What a part of a cut word counts more: two such parts in one chunk weigh a little more than each alone."""


class Strategy(msgspec.Struct, frozen=True):
    """OpenAI's static chunking: at most ``max_chunk_size_tokens`` in a chunk, of which up to ``chunk_overlap_tokens``
    repeat the end of the one before. Tokens are estimated by ``nagaya.kernel.tokens``. Raises ``InvalidValue``."""

    max_chunk_size_tokens: int = 800
    chunk_overlap_tokens: int = 400

    def __post_init__(self) -> None:
        size, overlap = self.max_chunk_size_tokens, self.chunk_overlap_tokens
        if not MIN_CHUNK_TOKENS <= size <= MAX_CHUNK_TOKENS:
            detail = f"between {MIN_CHUNK_TOKENS} and {MAX_CHUNK_TOKENS}"
            raise InvalidValue(param="max_chunk_size_tokens", at="max_chunk_size_tokens", detail=detail)
        if not 0 <= overlap <= size // 2:
            detail = f"between 0 and half of max_chunk_size_tokens, {size // 2}"
            raise InvalidValue(param="chunk_overlap_tokens", at="chunk_overlap_tokens", detail=detail)


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """A chunk of a document, number ``ordinal`` from 0.

    ``text`` is characters ``start`` to ``end`` of the document's text (``text_of`` its blocks); before them stands the
    first row of its table where a chunk begins among the later ones. ``headings`` lead from the title down to what all
    of the chunk is under. ``page`` is where it begins.
    """

    ordinal: int
    text: str
    headings: tuple[str, ...]
    page: int | None
    start: int
    end: int


def text_of(blocks: Iterable[Block]) -> str:
    """The text of a document, in which the offsets of its chunks count."""
    return BETWEEN_BLOCKS.join(block.text for block in blocks)


def chunked(blocks: Iterable[Block], strategy: Strategy | None = None) -> Iterator[Chunk]:
    """The chunks of a document, while its blocks arrive: what is held is never more than a chunk and a block.

    Every character of the document's text that is not space is in at least one chunk.
    """
    packing = _Packing(strategy or Strategy())
    for block in blocks:
        yield from packing.add(block)
    yield from packing.finish()


class _Piece(NamedTuple):
    """What is never divided. ``text`` ends with the space up to the next piece."""

    text: str
    start: int
    weight: float
    kind: BlockKind
    path: tuple[str, ...]
    page: int | None
    head: str | None


class _Packing:
    def __init__(self, strategy: Strategy) -> None:
        self._limit = strategy.max_chunk_size_tokens
        self._overlap = strategy.chunk_overlap_tokens
        self._held: list[_Piece] = []
        self._weight = 0.0
        self._repeated = 0
        """How many of the held pieces were in the chunk before as well."""
        self._offset = 0
        self._ordinal = 0
        self._path: list[tuple[int, str]] = []
        self._head: str | None = None

    def add(self, block: Block) -> Iterator[Chunk]:
        if block.kind == "heading":
            if self._section_is_worth_a_chunk():
                yield self._chunk()
                self._begin([], repeated=0)
            while self._path and self._path[-1][0] >= block.level:
                self._path.pop()
            self._path.append((block.level, block.text))
        for piece in self._pieces(block):
            if self._held and self._weight + piece.weight > self._limit:
                yield from self._full(piece)
            self._append(piece)

    def finish(self) -> Iterator[Chunk]:
        if len(self._held) > self._repeated:
            yield self._chunk()

    def _full(self, following: _Piece) -> Iterator[Chunk]:
        """Close the chunk before ``following``. Headings at its end go with what they are above."""
        size = len(self._held)
        while size > self._repeated and self._held[size - 1].kind == "heading":
            size -= 1
        headings = self._held[size:]
        if size > self._repeated and _weigh([*headings, following]) <= self._limit:
            del self._held[size:]
        else:
            headings = []
        carried = [] if headings else self._carried(following)
        if len(self._held) > self._repeated:
            yield self._chunk()
        self._begin(headings or carried, repeated=len(carried))

    def _carried(self, following: _Piece) -> list[_Piece]:
        """What the next chunk begins with: the end of this one, as far as the overlap and its size allow."""
        first = len(self._held)
        total = 0.0
        for piece in reversed(self._held):
            total += piece.weight
            if total > self._overlap or total + _head_weight(piece) + following.weight > self._limit:
                break
            first -= 1
        return self._held[first:]

    def _section_is_worth_a_chunk(self) -> bool:
        own = self._held[self._repeated :]
        has_body = any(piece.kind != "heading" for piece in own)
        return has_body and sum(piece.weight for piece in own) >= self._limit / _SMALL_SECTION

    def _begin(self, pieces: list[_Piece], *, repeated: int) -> None:
        self._held, self._repeated, self._weight = pieces, repeated, _weigh(pieces)

    def _append(self, piece: _Piece) -> None:
        self._weight += piece.weight + (0.0 if self._held else _head_weight(piece))
        self._held.append(piece)

    def _chunk(self) -> Chunk:
        first = self._held[0]
        text = "".join(piece.text for piece in self._held).rstrip()
        end = first.start + len(text)
        if first.head is not None:
            text = first.head + BETWEEN_BLOCKS + text
        own = self._held[self._repeated :]
        bodies = [piece for piece in own if piece.kind != "heading"] or own[-1:]
        chunk = Chunk(self._ordinal, text, _common([piece.path for piece in bodies]), first.page, first.start, end)
        self._ordinal += 1
        return chunk

    def _pieces(self, block: Block) -> Iterator[_Piece]:
        path = tuple(text for _, text in self._path)
        head = self._head_for(block)
        most = self._limit - (0.0 if head is None else weight(head + BETWEEN_BLOCKS))
        for part in _parts(block):
            size = weight(part)
            cuts = [(part, size)] if size <= most else _cut(part, min(most, self._limit - self._overlap))
            for text, share in cuts:
                yield _Piece(text, self._offset, share, block.kind, path, block.page, head)
                self._offset += len(text)

    def _head_for(self, block: Block) -> str | None:
        """The row to be repeated before this block where it begins a chunk."""
        if block.kind != "table_row":
            self._head = None
        elif block.level == 0:
            self._head = block.text if weight(block.text) <= self._limit / _REPEATED_HEAD else None
        else:
            return self._head
        return None


def _weigh(pieces: list[_Piece]) -> float:
    return sum(piece.weight for piece in pieces) + (_head_weight(pieces[0]) if pieces else 0.0)


def _head_weight(piece: _Piece) -> float:
    return 0.0 if piece.head is None else weight(piece.head + BETWEEN_BLOCKS)


def _parts(block: Block) -> Iterable[str]:
    whole = block.text + BETWEEN_BLOCKS
    match block.kind:
        case "code":
            return whole.splitlines(keepends=True)
        case "heading" | "table_row":
            return (whole,)
        case _:
            return sentences(whole)


def _common(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    shortest, longest = min(paths), max(paths)
    for at, (one, other) in enumerate(zip(shortest, longest, strict=False)):
        if one != other:
            return shortest[:at]
    return min(shortest, longest, key=len)


def _cut(text: str, room: float) -> Iterator[tuple[str, float]]:
    """Parts of a text that is too long for one, each within ``room``: after a space or a mark where there is one in
    the second half, else between words or characters, else inside a word."""
    room -= _CUT_EXTRA
    held: list[tuple[str, float]] = []
    total = 0.0
    for token, share in _small(text, room):
        # Space stays with what it follows: no part is made of space alone.
        if held and total + share > room and not token.isspace():
            at = _soft_end(held)
            yield "".join(piece for piece, _ in held[:at]), sum(each for _, each in held[:at]) + _CUT_EXTRA
            held = held[at:]
            total = sum(each for _, each in held)
        held.append((token, share))
        total += share
    if held:
        yield "".join(piece for piece, _ in held), total + _CUT_EXTRA


def _soft_end(held: list[tuple[str, float]]) -> int:
    for at in range(len(held), len(held) // 2, -1):
        if not held[at - 1][0][-1].isalnum():
            return at
    return len(held)


def _small(text: str, room: float) -> Iterator[tuple[str, float]]:
    """The text's tokens; one that is itself too long (an unbroken run of letters, of kana) in slices."""
    for token, share in weigh(text):
        if share <= room / 8:
            yield token, share
            continue
        size = max(1, int(len(token) * room / 8 / share))
        for start in range(0, len(token), size):
            part = token[start : start + size]
            yield part, weight(part)
