"""How a record lies in Cosmos DB: the names of partitions and items, and bodies that are larger than an item may be.

An item: ``pk`` = ``room#partition``; ``id`` and ``sk`` = the sort key in hexadecimal, whose order as text is the order
of the bytes, without any of the characters that an id may not have; ``r`` the revision; ``n`` the body's bytes; ``w`` a
random mark of the write that made it; ``b`` the sealed body in base64, or ``c`` = [mark, count] where it lies in
pieces; ``o`` the ``c`` of the revision before.

Pieces are items ``~mark~number`` of the same partition, without ``sk``: no range query sees them. They are written
before the item that names them and removed after the one that names others, so a body is always whole.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from nagaya.stores.driver import Put

PIECE_BYTES: Final = 750_000
"""Of a body in one item: an item may have 2 MB of JSON, base64 makes three bytes four, and a request below 1 MiB does
not hold the event loop."""

BATCH_BYTES: Final = 600_000
"""Of all bodies in one transactional batch, for the same reasons; the rest goes into pieces."""

_ODD: Final = re.compile(r"[^ -$&-~]")
_CODED: Final = re.compile(r"%([0-9a-f]{2})")


class Piece(NamedTuple):
    """One part of a large body: its item's id and its bytes."""

    id: str
    body: bytes


def partition_key(room: str, partition: str) -> str:
    """The partition key of a room's partition. No room's name has a ``#``, so no two rooms share one.

    Characters that do not print are written as ``%xx``, for no document says that the service keeps them.
    """
    return f"{room}#{_ODD.sub(lambda odd: f'%{ord(odd[0]):02x}', partition)}"


def partition_of(room: str, key: str) -> str:
    """The partition's name again."""
    return _CODED.sub(lambda code: chr(int(code[1], 16)), key.removeprefix(f"{room}#"))


def room_end(room: str) -> str:
    """The first text after every partition key of the room: ``$`` follows ``#``."""
    return f"{room}$"


def text(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


def item(key: str, put: Put, mark: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    """A record that is written where nothing lies."""
    sort = put.sort.hex()
    return {"id": sort, "pk": key, "sk": sort, **_changing(put, mark, pieces), "o": None}


def patch(put: Put, mark: str, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """What turns the revision before into this one. The former pieces' name is kept, for they are to be removed."""
    former = {"op": "move", "from": "/c", "path": "/o"}
    return [former, *({"op": "set", "path": f"/{k}", "value": v} for k, v in _changing(put, mark, pieces).items())]


def piece_item(key: str, piece: Piece) -> dict[str, Any]:
    return {"id": piece.id, "pk": key, "n": len(piece.body), "b": text(piece.body)}


def _changing(put: Put, mark: str, pieces: Sequence[Piece]) -> dict[str, Any]:
    # What lies in pieces is counted there.
    inline = None if pieces else text(put.body)
    size = len(put.sort) + (0 if pieces else len(put.body))
    name = [pieces[0].id.split("~")[1], len(pieces)] if pieces else None
    return {"r": put.expect + 1, "n": size, "w": mark, "b": inline, "c": name}


def is_at(revision: int) -> str:
    """The condition of a patch: atomic with it, and therefore one round trip where an etag would need two."""
    return f"FROM c WHERE c.r = {revision:d}"


def piece_ids(name: Sequence[Any]) -> list[str]:
    """The ids of the pieces that an item's ``c`` or ``o`` names."""
    return [f"~{name[0]}~{number}" for number in range(name[1])]


def cut(puts: Sequence[Put], mark: str) -> dict[bytes, list[Piece]]:
    """The pieces of those bodies that are too large to lie in their item, by sort key; the largest first."""
    left = sum(len(put.body) for put in puts)
    limit = PIECE_BYTES if len(puts) == 1 else BATCH_BYTES
    found: dict[bytes, list[Piece]] = {}
    for number, put in enumerate(sorted(puts, key=lambda put: -len(put.body))):
        if left <= limit:
            break
        left -= len(put.body)
        parts = range(0, len(put.body), PIECE_BYTES)
        found[put.sort] = [
            Piece(f"~{mark}{number:02x}~{index}", put.body[start : start + PIECE_BYTES])
            for index, start in enumerate(parts)
        ]
    return found
