"""One transaction for many writers: what a group of writes becomes between BEGIN and COMMIT.

The group is first tried as a whole, statement kind by statement kind, counting the rows that changed. Only where the
count is short does one of the conditions not hold; then all is undone and they go one by one, each checked
before it changes anything. So the usual group costs no look-up at all, and a lost race spoils nobody else's write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import apsw

from nagaya.errors import ConditionFailed
from nagaya.stores.driver import ABSENT, Change, Put

_INSERT: Final = "INSERT INTO records (partition, sort, revision, body) VALUES (?, ?, 1, ?) ON CONFLICT DO NOTHING"
# The same, if nobody else has written to the file since: one statement, and so one transaction, judged under its lock.
_INSERT_SINCE: Final = (
    "INSERT INTO records (partition, sort, revision, body) SELECT ?, ?, 1, ? "
    "WHERE (SELECT data_version FROM pragma_data_version) = ? ON CONFLICT DO NOTHING"
)
# The same, if nobody at all has.
_INSERT_STAMPED: Final = (
    "INSERT INTO records (partition, sort, revision, body) SELECT ?, ?, 1, ? WHERE stamp() = ? ON CONFLICT DO NOTHING"
)
_UPDATE: Final = (
    "UPDATE records SET body = ?, revision = revision + 1 WHERE partition = ? AND sort = ? AND revision = ?"
)
_DELETE: Final = "DELETE FROM records WHERE partition = ? AND sort = ? AND revision = ?"
_REVISION: Final = "SELECT revision FROM records WHERE partition = ? AND sort = ?"
_NUMBER: Final = "SELECT number FROM partitions WHERE name = ?"
_NEW_PARTITION: Final = "INSERT INTO partitions (name) VALUES (?)"

UNFIT: Final = (TypeError, ValueError, apsw.ConstraintError, apsw.TooBigError, apsw.MismatchError)
"""Something that SQLite cannot store. It belongs to one write and must not spoil the others'."""

Outcome = Exception | None


class Write(NamedTuple):
    """What one call wants written."""

    partition: str
    changes: Sequence[Change]
    version: int | None = None
    """Where set, it is refused if another process has written to the file since this data version."""


class Request(NamedTuple):
    """A write that waits for its commit."""

    write: Write
    waiter: asyncio.Future[None]


class Moment(NamedTuple):
    """A file at a moment: which opening of it (data versions are a connection's own), and its data version."""

    serial: int
    version: int


class _Refused(Exception):
    """Some condition in the group does not hold."""


def data_version(connection: apsw.Connection) -> int:
    """A number that changes when somebody else has written to the file; it may when nobody has."""
    version = connection.execute("PRAGMA data_version").fetchall()[0][0]
    assert isinstance(version, int)
    return version


def partition_number(cursor: apsw.Cursor, name: str) -> int | None:
    """The number a partition has in this file, or None where nothing was ever written to it."""
    rows: list[Any] = cursor.execute(_NUMBER, (name,)).fetchall()
    return rows[0][0] if rows else None


def commit_group(
    connection: apsw.Connection, known: Mapping[str, int], writes: Sequence[Write]
) -> tuple[list[Outcome], dict[str, int]]:
    """Commit the writes in one transaction. Gives an outcome per write and the partition numbers learnt.

    Raises ``apsw.Error`` where the transaction as a whole failed; then nothing of it was kept.
    """
    try:
        if len(writes) == 1 and len(writes[0].changes) == 1:
            number, version = known.get(writes[0].partition), writes[0].version
            change = writes[0].changes[0]
            if number is not None and (version is None or (type(change) is Put and change.expect == ABSENT)):
                # A single statement is a transaction by itself: one call into SQLite instead of three or four, and in
                # a thread each call is a wait for the interpreter.
                if type(change) is Put:
                    kept = put_alone(connection, number, change.sort, change.body, change.expect, version)
                else:
                    kept = _apply(connection, number, change)
                return [None if kept else ConditionFailed()], {}
        return _whole(connection, known, writes)
    except _Refused:
        return _one_by_one(connection, known, writes)
    except UNFIT as unfit:
        if len(writes) == 1:
            return [unfit], {}
        outcomes: list[Outcome] = []
        learnt: dict[str, int] = {}
        for write in writes:
            outcome, more = commit_group(connection, known, (write,))
            outcomes += outcome
            learnt |= more
        return outcomes, learnt


def put_alone(
    connection: apsw.Connection, number: int, sort: bytes, body: bytes, expect: int, version: int | None
) -> bool:
    """Put one record in a statement, which outside a transaction is one; whether its condition held. ``version`` goes
    with an insert only."""
    if expect != ABSENT:
        connection.execute(_UPDATE, (body, number, sort, expect))
    elif version is None:
        connection.execute(_INSERT, (number, sort, body))
    else:
        connection.execute(_INSERT_SINCE, (number, sort, body, version))
    return connection.changes() == 1


def add_stamp(connection: apsw.Connection) -> None:
    """Let statements ask for the connection's stamp: a number that changes with every write to the file, its own too.
    SQLite has it at hand; for the data version it prepares a statement each time."""
    connection.create_scalar_function("stamp", cast("Callable[..., int]", connection.data_version), 0)


def insert_stamped(cursor: apsw.Cursor, number: int, sort: bytes, body: bytes, stamp: int) -> bool:
    """Insert one record if nobody at all has written to the file since that stamp; whether it did."""
    cursor.execute(_INSERT_STAMPED, (number, sort, body, stamp))
    return cursor.connection.changes() == 1


def _apply(connection: apsw.Connection, number: int, change: Change) -> bool:
    if type(change) is Put:
        return put_alone(connection, number, change.sort, change.body, change.expect, None)
    connection.execute(_DELETE, (number, change.sort, change.expect))
    return connection.changes() == 1


def _number_for(
    connection: apsw.Connection, known: Mapping[str, int], learnt: dict[str, int], write: Write
) -> int | None:
    name = write.partition
    number = known.get(name) or learnt.get(name)
    if number is None:
        number = partition_number(connection.cursor(), name)
        if number is None:
            if not any(type(change) is Put and change.expect == ABSENT for change in write.changes):
                return None
            connection.execute(_NEW_PARTITION, (name,))
            number = connection.last_insert_rowid()
        learnt[name] = number
    return number


def _whole(
    connection: apsw.Connection, known: Mapping[str, int], writes: Sequence[Write]
) -> tuple[list[Outcome], dict[str, int]]:
    learnt: dict[str, int] = {}
    inserts: list[tuple[int, bytes, bytes]] = []
    updates: list[tuple[bytes, int, bytes, int]] = []
    deletes: list[tuple[int, bytes, int]] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = None
        for write in writes:
            if write.version is not None:
                version = version or data_version(connection)
                if write.version != version:
                    raise _Refused
            number = _number_for(connection, known, learnt, write)
            if number is None:
                raise _Refused
            for change in write.changes:
                if type(change) is not Put:
                    deletes.append((number, change.sort, change.expect))
                elif change.expect == ABSENT:
                    inserts.append((number, change.sort, change.body))
                else:
                    updates.append((change.body, number, change.sort, change.expect))
        before = connection.total_changes()
        # Requests of one group wait side by side, so any order among them is as good as another.
        if inserts:
            connection.executemany(_INSERT, inserts)
        if updates:
            connection.executemany(_UPDATE, updates)
        if deletes:
            connection.executemany(_DELETE, deletes)
        if connection.total_changes() - before != len(inserts) + len(updates) + len(deletes):
            raise _Refused
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return [None] * len(writes), learnt


def _one_by_one(
    connection: apsw.Connection, known: Mapping[str, int], writes: Sequence[Write]
) -> tuple[list[Outcome], dict[str, int]]:
    learnt: dict[str, int] = {}
    outcomes: list[Outcome] = []
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = data_version(connection)
        for write in writes:
            if write.version is not None and write.version != version:
                outcomes.append(ConditionFailed())
                continue
            number = _number_for(connection, known, learnt, write)
            if number is None or not _holds(connection, number, write.changes):
                outcomes.append(ConditionFailed())
                continue
            for change in write.changes:
                _apply(connection, number, change)
            outcomes.append(None)
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return outcomes, learnt


def _holds(connection: apsw.Connection, number: int, changes: Sequence[Change]) -> bool:
    for change in changes:
        row = connection.execute(_REVISION, (number, change.sort)).fetchone()
        if (ABSENT if row is None else row[0]) != change.expect:
            return False
    return True


def roll_back(connection: apsw.Connection) -> None:
    """Undo an open transaction. SQLite undoes some failures by itself; then there is nothing left to do."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
