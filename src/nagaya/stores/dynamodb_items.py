"""How a room's records lie in a DynamoDB table.

Every key leads with the room, so that an IAM condition on ``dynamodb:LeadingKeys`` can hold a role to it. A room's name
contains none of the marks, so no room's keys begin with another's:

======================  ===========================  ==========================================
``pk``                  ``sk``                       what
======================  ===========================  ==========================================
``room#partition``      the sort key                 a record: ``rev``, and ``body`` or ``parts``
``room~partition``      length, sort key, id, place  a part of a body too large for one item
``room!partitions``     the partition's name         that the partition exists; for scans
``room!room``           one zero byte                that the room exists
======================  ===========================  ==========================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nagaya.stores.driver import ABSENT, Change, Put, Row

ITEM_BYTES: Final = 380_000
"""Of a body or a part in one item. DynamoDB's limit is 400 KB with keys and names."""

TRANSACTION_BYTES: Final = 2_900_000
"""Of all items of a transaction. DynamoDB's limit is 4 MB; this is below it also as base64, in which they travel."""

TRANSACTION_ITEMS: Final = 100
_PER_ITEM: Final = 600
"""Bytes that keys, names and revision of an item take at the most."""
_ID_BYTES: Final = 8
_ABSENT: Final = "attribute_not_exists(pk)"
_PLAIN: Final = "#r = :r AND attribute_not_exists(#p)"
_PARTED: Final = "#r = :r AND #p = :p"
_REV_PARTS: Final = {"#r": "rev", "#p": "parts"}

Item = dict[str, dict[str, Any]]


def row_key(room: str, partition: str, sort: bytes) -> Item:
    return {"pk": {"S": f"{room}#{partition}"}, "sk": {"B": sort}}


def parts_of(room: str, partition: str) -> str:
    return f"{room}~{partition}"


def directory_of(room: str) -> str:
    return f"{room}!partitions"


def directory_item(room: str, partition: str) -> Item:
    return {"pk": {"S": directory_of(room)}, "sk": {"B": partition.encode("ascii")}}


def room_key(room: str) -> Item:
    return {"pk": {"S": f"{room}!room"}, "sk": {"B": b"\0"}}


def leading_keys(room: str) -> list[str]:
    """The patterns of every ``pk`` of a room, for ``dynamodb:LeadingKeys``."""
    return [f"{room}#*", f"{room}~*", f"{room}!*"]


def part_prefix(sort: bytes, parts: bytes) -> bytes:
    """What the sort keys of a body's parts begin with."""
    return bytes((len(sort),)) + sort + parts[:_ID_BYTES]


def part_count(parts: bytes) -> int:
    return int.from_bytes(parts[_ID_BYTES:], "big")


def part_keys(room: str, partition: str, sort: bytes, parts: bytes) -> list[Item]:
    """The keys of all parts of a body."""
    prefix = part_prefix(sort, parts)
    key = {"S": parts_of(room, partition)}
    return [{"pk": key, "sk": {"B": prefix + place.to_bytes(2, "big")}} for place in range(part_count(parts))]


def row_of(item: Item) -> Row:
    """The record in an item that holds its body itself."""
    body = item.get("body")
    return Row(item["sk"]["B"], int(item["rev"]["N"]), body["B"] if body is not None else b"")


def size_of(item: Item) -> int:
    """The bytes of an item as DynamoDB counts them, to a few."""
    return sum(len(name) + len(next(iter(value.values()))) for name, value in item.items())


@dataclass
class Plan:
    """A write as items. ``heads`` decide, with their conditions; ``parts`` mean nothing before a head names them."""

    heads: list[dict[str, Any]] = field(default_factory=list)
    parts: list[Item] = field(default_factory=list)
    stale: list[Item] = field(default_factory=list)
    """Keys of the parts that the old bodies had."""

    def fits(self, extra: int) -> bool:
        """Whether everything, and ``extra`` small items, goes into one transaction."""
        if len(self.heads) + len(self.parts) + len(self.stale) + extra > TRANSACTION_ITEMS:
            return False
        items = [each["Put"]["Item"] for each in self.heads if "Put" in each] + self.parts
        return sum(_weight(item) for item in items) <= TRANSACTION_BYTES


def _weight(item: Item) -> int:
    body = item.get("body")
    return _PER_ITEM + (len(body["B"]) if body is not None else 0)


def plan(table: str, room: str, partition: str, changes: Sequence[Change], old: Mapping[bytes, bytes]) -> Plan:
    """How ``changes`` are written; ``old`` names the parts of those places whose bodies lie in parts."""
    made = Plan()
    apart = _apart(changes)
    for change in changes:
        key = row_key(room, partition, change.sort)
        held = old.get(change.sort)
        if held is not None:
            made.stale += part_keys(room, partition, change.sort, held)
        if type(change) is Put:
            item: Item = {**key, "rev": {"N": str(change.expect + 1)}}
            if change.sort in apart:
                item["parts"] = {"B": _cut(made.parts, room, partition, change)}
            elif change.body:
                item["body"] = {"B": bytes(change.body)}
            made.heads.append({"Put": {"TableName": table, "Item": item, **_condition(change.expect, held)}})
        else:
            made.heads.append({"Delete": {"TableName": table, "Key": key, **_condition(change.expect, held)}})
    return made


def _condition(expect: int, held: bytes | None) -> dict[str, Any]:
    if expect == ABSENT:
        return {"ConditionExpression": _ABSENT}
    revision = {":r": {"N": str(expect)}}
    told: dict[str, Any] = {"ReturnValuesOnConditionCheckFailure": "ALL_OLD", "ExpressionAttributeNames": _REV_PARTS}
    if held is None:
        return {"ConditionExpression": _PLAIN, "ExpressionAttributeValues": revision, **told}
    return {"ConditionExpression": _PARTED, "ExpressionAttributeValues": {**revision, ":p": {"B": held}}, **told}


def _apart(changes: Sequence[Change]) -> set[bytes]:
    """The places whose bodies do not lie in their own item: too large, or too large together, the largest first."""
    bodies = sorted(
        ((len(change.body), change.sort) for change in changes if type(change) is Put and change.body), reverse=True
    )
    apart = {sort for size, sort in bodies if size > ITEM_BYTES}
    room_left = TRANSACTION_BYTES - _PER_ITEM * (len(changes) + 1)
    within = sum(size for size, sort in bodies if sort not in apart)
    for size, sort in bodies:
        if within <= room_left:
            break
        if sort not in apart:
            apart.add(sort)
            within -= size
    return apart


def _cut(parts: list[Item], room: str, partition: str, change: Put) -> bytes:
    """Add the parts of a body; gives what its head names them by."""
    body = bytes(change.body)
    pieces = [body[start : start + ITEM_BYTES] for start in range(0, len(body), ITEM_BYTES)]
    # The id is fresh for every write, so that two writers never mix their parts.
    named = os.urandom(_ID_BYTES) + len(pieces).to_bytes(2, "big")
    for key, piece in zip(part_keys(room, partition, change.sort, named), pieces, strict=True):
        parts.append({**key, "body": {"B": piece}})
    return named
