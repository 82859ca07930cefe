"""The words of some neighbouring texts of one log, in bytes that are searched where they lie, without numpy.

::

    head   keys (8 bytes each)   starts (2)   times (8)   places (4)   unread (4)   texts (1)   counts (1)

All little-endian. A term is 64 bits of its hash; from its start to the next one's are its postings: the numbers of the
texts that have it, and how often each. ``unread`` are places that a search has to read for itself: of texts with too
many words, and of those that may still be on their way. The bytes hold texts' words and are to be sealed.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple

from nagaya.errors import IndexDamaged, IndexOutdated
from nagaya.indexes.coverage import LEAST, MOST, OFTEN, covered
from nagaya.indexes.terms import TERMS_VERSION, term_key

FORMAT: Final = 1
MAX_TEXTS: Final = 250
"""Texts of one block; their numbers fit in a byte."""
MAX_TERMS: Final = 3_000
"""Different words of a text that is not left to be read."""
MAX_BYTES: Final = 48 * 1024
"""What a block is to stay below, for a text more than fits begins the next one."""

_MAGIC: Final = b"NgWb"
_HEAD: Final = Struct("<4sBBBBQQHHII")
_WIDTHS: Final = {"Q": 8, "H": 2, "I": 4, "B": 1}


class Text(NamedTuple):
    """A text: its place in the log, when it came to be, and how often each term occurs in it."""

    place: int
    at_us: int
    counts: Mapping[str, int]


class Found(NamedTuple):
    """A text that has enough of the words."""

    place: int
    at_us: int
    score: float


class Wanted:
    """A query's terms and weights (at least one), hashed once for all blocks."""

    def __init__(self, terms: Mapping[str, float]) -> None:
        self.terms = terms
        self.total = sum(terms.values())
        self.keys = [(term_key(term), weight) for term, weight in terms.items()]


class WordBlock:
    """An opened block: the places ``first <= n < upto``. ``is_full``: it takes no more texts. Raises ``IndexDamaged``,
    ``IndexOutdated``."""

    __slots__ = ("_at", "_counts", "_keys", "_places", "_starts", "_texts", "first", "is_full", "unread", "upto")

    def __init__(self, content: bytes) -> None:
        if len(content) < _HEAD.size:
            raise IndexDamaged
        magic, version, terms, full, _, first, upto, texts, unread, keys, postings = _HEAD.unpack_from(content)
        if magic != _MAGIC:
            raise IndexDamaged
        if (version, terms) != (FORMAT, TERMS_VERSION):
            raise IndexOutdated(found=f"{version}.{terms}", known=f"{FORMAT}.{TERMS_VERSION}")
        self.first, self.upto, self.is_full = int(first), int(upto), bool(full)
        rest = memoryview(content)[_HEAD.size :]
        pieces = []
        for kind, count in zip("QHQIIBB", (keys, keys + 1, texts, texts, unread, postings, postings), strict=True):
            size = count * _WIDTHS[kind]
            if len(rest) < size:
                raise IndexDamaged
            pieces.append(_numbers(kind, rest[:size]))
            rest = rest[size:]
        self._keys, self._starts, self._at, self._places, left, self._texts, self._counts = pieces
        self.unread = [self.first + offset for offset in left]

    def found(self, wanted: Wanted) -> list[Found]:
        """The texts that have enough of the words."""
        keys, starts, size = self._keys, self._starts, len(self._places)
        shares, oftens = [0.0] * size, [0.0] * size
        for key, weight in wanted.keys:
            at = bisect_left(keys, key)
            if at == len(keys) or keys[at] != key:
                continue
            postings = slice(starts[at], starts[at + 1])
            for text, count in zip(self._texts[postings], self._counts[postings], strict=True):
                shares[text] += weight
                oftens[text] += weight * OFTEN[count]
        total = wanted.total
        least = LEAST * total * 0.999  # the exact test is made of those that pass
        return [
            Found(self.first + self._places[text], self._at[text], score)
            for text, share in enumerate(shares)
            if share >= least and (score := covered(share, oftens[text], total))
        ]


class BlockWriter:
    """Gathers texts for a block that begins at a place."""

    def __init__(self, first: int) -> None:
        self.first = first
        self._texts: list[Text] = []
        self._unread: list[int] = []
        self._keys: dict[str, int] = {}
        self._postings = 0

    def add(self, text: Text) -> bool:
        """Take a text, later than those before; False where this block has no room for it."""
        if len(text.counts) > MAX_TERMS:
            return self.leave(text.place)
        fresh = [term for term in text.counts if term not in self._keys]
        keys, postings = len(self._keys) + len(fresh), self._postings + len(text.counts)
        if (self._texts or self._unread) and (not self._has_room() or 10 * keys + 2 * postings > MAX_BYTES):
            return False
        for term in fresh:
            self._keys[term] = term_key(term)
        self._postings = postings
        self._texts.append(text)
        return True

    def leave(self, place: int) -> bool:
        """Leave a place to be read; False where this block has no room for it."""
        if not self._has_room():
            return False
        self._unread.append(place)
        return True

    def _has_room(self) -> bool:
        return len(self._texts) + len(self._unread) < MAX_TEXTS

    def written(self, upto: int, *, is_full: bool) -> bytes:
        """The block's bytes, for the places up to ``upto``. ``is_full``: the next text begins another block."""
        postings: dict[int, list[tuple[int, int]]] = {key: [] for key in sorted(set(self._keys.values()))}
        for number, text in enumerate(self._texts):
            for term, count in text.counts.items():
                postings[self._keys[term]].append((number, min(count, MOST)))
        starts = [0]
        for each in postings.values():
            starts.append(starts[-1] + len(each))
        flat = [posting for each in postings.values() for posting in each]
        head = _HEAD.pack(
            _MAGIC, FORMAT, TERMS_VERSION, is_full, 0, self.first, upto,
            len(self._texts), len(self._unread), len(postings), len(flat),
        )  # fmt: skip
        sections = (
            ("Q", list(postings)), ("H", starts), ("Q", [text.at_us for text in self._texts]),
            ("I", [text.place - self.first for text in self._texts]),
            ("I", [place - self.first for place in self._unread]),
            ("B", [number for number, _ in flat]), ("B", [count for _, count in flat]),
        )  # fmt: skip
        return head + b"".join(_bytes(kind, numbers) for kind, numbers in sections)


def _numbers(kind: str, piece: memoryview) -> Sequence[int]:
    if sys.byteorder == "little":
        return piece.cast(kind)  # type: ignore[call-overload, no-any-return] # its stub knows literal formats alone
    numbers = array(kind, bytes(piece))
    numbers.byteswap()
    return numbers


def _bytes(kind: str, numbers: Sequence[int]) -> bytes:
    made = array(kind, numbers)
    if sys.byteorder != "little":
        made.byteswap()
    return made.tobytes()
