"""Reads of a room's file: plain functions over a cursor, run in the loop or in a thread alike. Each takes every row it
asks for, so that no statement is left open and the cursor may be kept."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Final, cast

import apsw

from nagaya.stores.driver import PlainRow, Row, ScannedRow
from nagaya.stores.sqlite_commit import partition_number

_NUMBERS_KEPT: Final = 512
_GET: Final = "SELECT sort, revision, body FROM records WHERE partition = ? AND sort = ?"
_UP: Final = "SELECT sort, revision, body FROM records WHERE partition = ? AND sort > ? ORDER BY sort LIMIT ?"
_DOWN: Final = "SELECT sort, revision, body FROM records WHERE partition = ? AND sort > ? ORDER BY sort DESC LIMIT ?"
_UP_TO: Final = (
    "SELECT sort, revision, body FROM records WHERE partition = ? AND sort > ? AND sort < ? ORDER BY sort LIMIT ?"
)
_DOWN_FROM: Final = (
    "SELECT sort, revision, body FROM records WHERE partition = ? AND sort > ? AND sort < ? ORDER BY sort DESC LIMIT ?"
)
_PARTITIONS_AFTER: Final = (
    "SELECT p.name, r.sort, r.revision, r.body FROM partitions p CROSS JOIN records r ON r.partition = p.number "
    "WHERE p.name > ? ORDER BY p.name, r.sort LIMIT ?"
)
_row = cast("Callable[[Any], Row]", partial(tuple.__new__, Row))


def remember(known: MutableMapping[str, int], name: str, number: int) -> None:
    """Keep a partition's number; past the bound the oldest goes."""
    if len(known) >= _NUMBERS_KEPT and name not in known:
        known.pop(next(iter(known)), None)
    known[name] = number


def _number(cursor: apsw.Cursor, known: MutableMapping[str, int], name: str) -> int | None:
    number = known.get(name)
    if number is None:
        number = partition_number(cursor, name)
        if number is not None:
            remember(known, name, number)
    return number


def read_one(cursor: apsw.Cursor, known: MutableMapping[str, int], partition: str, sort: bytes) -> list[Row]:
    """The record at a place: one row or none."""
    number = _number(cursor, known, partition)
    return [] if number is None else list(map(_row, cursor.execute(_GET, (number, sort)).fetchall()))


def read_known(cursor: apsw.Cursor, number: int, sort: bytes) -> Row | None:
    """The record at a place in a partition whose number is known."""
    found = cursor.execute(_GET, (number, sort)).fetchall()
    return _row(found[0]) if found else None


def read_range(
    cursor: apsw.Cursor,
    known: MutableMapping[str, int],
    partition: str,
    after: bytes,
    before: bytes,
    limit: int,
    descending: bool,
) -> list[PlainRow]:
    """A page of a partition's rows between two places, both outside."""
    number = _number(cursor, known, partition)
    if number is None:
        return []
    if before:
        cursor.execute(_DOWN_FROM if descending else _UP_TO, (number, after, before, limit))
    else:
        cursor.execute(_DOWN if descending else _UP, (number, after, limit))
    rows: list[Any] = cursor.fetchall()
    return rows


def read_scan(
    cursor: apsw.Cursor, known: MutableMapping[str, int], after: tuple[str, bytes] | None, limit: int
) -> list[ScannedRow]:
    """A page of all rows, by partition name and sort key."""
    found: list[ScannedRow] = []
    if after is not None:
        rows = read_range(cursor, known, after[0], after[1], b"", limit, False)
        found = [ScannedRow(after[0], _row(row)) for row in rows]
    if len(found) < limit:
        name = "" if after is None else after[0]
        more = cursor.execute(_PARTITIONS_AFTER, (name, limit - len(found))).fetchall()
        found += [ScannedRow(str(row[0]), _row(row[1:])) for row in more]
    return found
