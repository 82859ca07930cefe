"""What a checkpoint holds, taken apart: only what is new in it is written, the rest is where it was before.

A channel's value is one piece, or, where it is a list (of messages, mostly), a piece for each element. A checkpoint's
record has the pieces that are new in it, and says for every channel where all its pieces are: in runs, each from one
record. So a message is stored once, not again in every checkpoint after it. A conversation would soon lie in as many
records as it has messages; therefore runs at its end are joined when they have become many, as in a log-structured
tree: each piece is written again a few times, and a conversation of a thousand messages is read from a few dozen
records.

Everything here is a function of what it is given; nothing reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

JOINED_RUNS: Final = 8
"""Runs at the end of a list that are joined, where none of them is more than half of all."""
MAX_RUNS: Final = 64
"""A value in more runs than this, such as a list that is cut up again and again, is written anew."""
MAX_ELEMENTS: Final = 20_000
"""A longer list is one piece."""

Piece = tuple[str, bytes]
"""A serialised value: the serialiser's name for its form, and its bytes."""


class Run(NamedTuple):
    """``size`` pieces of one record, from ``first`` on."""

    source: int
    first: int
    size: int


class Held(msgspec.Struct, array_like=True):
    """Where a channel's value is. ``split``: it is a list, and each piece is an element."""

    split: bool
    runs: list[Run]


class Stored(msgspec.Struct, array_like=True, omit_defaults=True):
    """A checkpoint's record. ``head`` is the checkpoint without its values, and its metadata. A run's source is this
    record (0) or, from 1, one of ``sources``, which are other checkpoints' places.

    ``gone``: the checkpoint was deleted, and only pieces that others need are left of it.
    """

    namespace: str
    parent: bytes
    head: Piece
    channels: dict[str, Held] = {}
    sources: list[bytes] = []
    pieces: list[Piece] = []
    gone: bool = False


class Place(NamedTuple):
    """One piece: the place of the checkpoint whose record has it, and its number there."""

    checkpoint: bytes
    number: int


class Recalled(NamedTuple):
    """What is remembered of a channel in a checkpoint: its version, and where each of its pieces is, by a mark that
    only an equal piece has, and by the print of the value that was serialised, where it has one. It holds no content.
    """

    split: bool
    version: object
    places: Sequence[Place]
    by_mark: Mapping[bytes, Place]
    by_print: Mapping[Hashable, tuple[bytes, Place]]


def is_split(value: object) -> bool:
    """Whether a value is kept element by element: a list of things, but not of numbers, such as a vector."""
    return (
        type(value) is list
        and 0 < len(value) <= MAX_ELEMENTS
        and not isinstance(value[0], int | float | type(None))
        and not isinstance(value[-1], int | float | type(None))
    )


class Telling(NamedTuple):
    """How a value becomes a piece, and how equal ones are told: pieces by their mark, values that are not serialised
    yet by their print, where they have one."""

    serialise: Callable[[Any], Piece]
    mark: Callable[[Piece], bytes]
    print_of: Callable[[Any], Hashable | None]


class Taken(NamedTuple):
    """A checkpoint taken apart: what its record says, and what to remember of it."""

    channels: dict[str, Held]
    sources: list[bytes]
    pieces: list[Piece]
    recalled: dict[str, Recalled]


def take_apart(
    place: bytes,
    values: Mapping[str, Any],
    versions: Mapping[str, object],
    changed: Mapping[str, object],
    before: Mapping[str, Recalled],
    telling: Telling,
    *,
    offset: int = 0,
) -> Taken:
    """The pieces of ``values`` that are not in the parent checkpoint (``before``), and where all the others are.

    ``place`` is where the checkpoint itself is going to be; ``offset`` the number of its first new piece. A channel
    that is not among ``changed`` and has its parent's version is not even looked at.
    """
    channels: dict[str, Held] = {}
    sources: dict[bytes, int] = {place: 0}
    pieces: list[Piece] = []
    recalled: dict[str, Recalled] = {}
    for name, value in values.items():
        known = before.get(name)
        version = versions.get(name)
        if known is None or name in changed or known.version != version:
            known = _located(value, version, known, telling, place, offset, pieces)
        recalled[name] = known
        runs = [
            Run(sources.setdefault(source, len(sources)), first, count) for source, first, count in _runs(known.places)
        ]
        channels[name] = Held(known.split, runs)
    return Taken(channels, list(sources)[1:], pieces, recalled)


def _located(
    value: Any,
    version: object,
    before: Recalled | None,
    telling: Telling,
    place: bytes,
    offset: int,
    pieces: list[Piece],
) -> Recalled:
    """Where each piece of a value is. Those that are new are added to ``pieces``."""
    split = is_split(value)
    elements: list[Any] = value if split else [value]
    by_print = before.by_print if before is not None else {}
    by_mark = before.by_mark if before is not None else {}
    prints = list(map(telling.print_of, elements))
    own: list[Piece | None] = []
    marks: list[bytes] = []
    found: list[Place | None] = []
    for element, print_ in zip(elements, prints, strict=True):
        known = None if print_ is None else by_print.get(print_)
        if known is not None:
            own.append(None)
            marks.append(known[0])
            found.append(known[1])
        else:
            piece = telling.serialise(element)
            own.append(piece)
            marks.append(telling.mark(piece))
            found.append(by_mark.get(marks[-1]))
    kept = _kept(found) if split else 1
    places: list[Place] = []
    for number, at in enumerate(found):
        if at is None or number >= kept:
            at = Place(place, offset + len(pieces))
            pieces.append(own[number] or telling.serialise(elements[number]))
        places.append(at)
    at_prints = {
        print_: (mark, at) for print_, mark, at in zip(prints, marks, places, strict=True) if print_ is not None
    }
    return Recalled(split, version, places, dict(zip(marks, places, strict=True)), at_prints)


def _runs(places: Sequence[Place | None]) -> list[tuple[bytes, int, int]]:
    """Neighbouring places in one record, put together. A new piece (None) goes to a record that has no name yet."""
    runs: list[tuple[bytes, int, int]] = []
    source, first, count = b"", 0, 0
    for at in places:
        checkpoint, number = at if at is not None else (b"", first + count)
        if count and checkpoint == source and number == first + count:
            count += 1
            continue
        if count:
            runs.append((source, first, count))
        source, first, count = checkpoint, number if at is not None else 0, 1
    if count:
        runs.append((source, first, count))
    return runs


def _kept(found: Sequence[Place | None]) -> int:
    """How many elements from the start may stay where they are; those after them are written (again)."""
    counts = [count for _, _, count in _runs(found)]
    if len(counts) > MAX_RUNS:
        return 0
    kept = len(found)
    while len(counts) >= JOINED_RUNS:
        joined = sum(counts[-JOINED_RUNS:])
        if max(counts[-JOINED_RUNS:]) * 2 > joined:
            break
        counts[-JOINED_RUNS:] = [joined]
        kept = sum(counts[:-1])
    return kept


def put_together(
    stored: Stored,
    names: Sequence[str] | None,
    pieces_of: Callable[[int], Sequence[Piece]],
    load: Callable[[Piece], Any],
    load_list: Callable[[Sequence[Piece]], list[Any]],
) -> dict[str, Any]:
    """The values of the channels ``names`` (all, for None). ``pieces_of`` gives the pieces of a source by number."""
    values: dict[str, Any] = {}
    for name, (split, runs) in ((name, (held.split, held.runs)) for name, held in stored.channels.items()):
        if names is not None and name not in names:
            continue
        pieces: list[Piece] = []
        for source, first, count in runs:
            pieces += pieces_of(source)[first : first + count]
        values[name] = load_list(pieces) if split else load(pieces[0])
    return values


def recall(
    place: bytes,
    stored: Stored,
    versions: Mapping[str, object],
    pieces_of: Callable[[int], Sequence[Piece]],
    mark: Callable[[Piece], bytes],
) -> dict[str, Recalled]:
    """What :func:`take_apart` remembers of a checkpoint, from its record and its sources."""
    recalled: dict[str, Recalled] = {}
    for name, held in stored.channels.items():
        places: list[Place] = []
        by_mark: dict[bytes, Place] = {}
        for source, first, count in held.runs:
            checkpoint = stored.sources[source - 1] if source else place
            for number, piece in enumerate(pieces_of(source)[first : first + count], first):
                at = Place(checkpoint, number)
                places.append(at)
                by_mark[mark(piece)] = at
        recalled[name] = Recalled(held.split, versions.get(name), places, by_mark, {})
    return recalled


def needed(stored: Mapping[bytes, Stored], kept: set[bytes]) -> dict[bytes, set[int]]:
    """Which pieces of which checkpoints those that are ``kept`` need."""
    wanted: dict[bytes, set[int]] = {}
    for place in kept:
        each = stored[place]
        for held in each.channels.values():
            for source, first, count in held.runs:
                checkpoint = each.sources[source - 1] if source else place
                wanted.setdefault(checkpoint, set()).update(range(first, first + count))
    return wanted


def remains(stored: Stored, wanted: set[int]) -> Stored:
    """What is left of a deleted checkpoint whose pieces others need: these pieces, at their numbers, and no more."""
    pieces = [piece if number in wanted else ("null", b"") for number, piece in enumerate(stored.pieces)]
    return Stored(namespace=stored.namespace, parent=b"", head=("null", b""), pieces=pieces, gone=True)
