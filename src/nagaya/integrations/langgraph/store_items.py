"""What a store's item is made of, which items a search means, and how near they are. Nothing here reads or writes."""

from __future__ import annotations

import functools
import math
import operator
from array import array
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any, Final

import msgspec
from langgraph.store.base import MatchCondition

Vector = bytes
"""A vector of length 1: 32-bit floats, one after another."""


class StoredItem(msgspec.Struct, array_like=True, omit_defaults=True):
    """One item. ``value`` is its JSON. ``ttl_us`` and ``expires_us`` are 0 where it does not expire; ``vectors`` are
    those of its texts, made by ``model``."""

    key: str
    value: bytes
    created_us: int
    updated_us: int
    ttl_us: int = 0
    expires_us: int = 0
    model: str = ""
    vectors: list[Vector] = []


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(StoredItem).decode


def moment(us: int) -> datetime:
    """A time as LangGraph has it."""
    return datetime.fromtimestamp(us / 1_000_000, UTC)


# --- which ---


def fits(value: Any, wanted: Any) -> bool:
    """Whether a value is what a filter asks for: equal, or as its operators (``$eq``, ``$ne``, ``$gt``, …) say."""
    if isinstance(wanted, Mapping):
        if any(str(name).startswith("$") for name in wanted):
            return all(_compares(value, name, other) for name, other in wanted.items())
        return isinstance(value, Mapping) and all(fits(value.get(name), each) for name, each in wanted.items())
    if isinstance(wanted, list | tuple):
        return isinstance(value, list | tuple) and len(value) == len(wanted) and all(map(fits, value, wanted))
    return bool(value == wanted)


_ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le,
}  # fmt: skip


def _compares(value: Any, name: str, other: Any) -> bool:
    if name == "$eq":
        return bool(value == other)
    if name == "$ne":
        return bool(value != other)
    if name not in _ORDERS:
        raise ValueError(f"unknown operator {name!r}: use $eq, $ne, {', '.join(_ORDERS)}")
    try:
        return _ORDERS[name](float(value), float(other))
    except (TypeError, ValueError):
        pass
    try:
        return _ORDERS[name](value, other)
    except TypeError:
        # What cannot be compared is not what was asked for.
        return False


def matches(namespace: tuple[str, ...], condition: MatchCondition) -> bool:
    """Whether a namespace begins (or ends) as a path says; ``*`` stands for any label."""
    path = condition.path
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))


# --- how near ---


@functools.cache
def _numpy() -> ModuleType | None:
    try:
        import numpy
    except ModuleNotFoundError:
        return None
    return numpy


def unit(vector: Sequence[float]) -> Vector:
    """The vector of length 1 in the same direction."""
    length = math.sqrt(sum(float(each) * float(each) for each in vector)) or 1.0
    return array("f", [float(each) / length for each in vector]).tobytes()


def nearness(query: Vector, vectors: Sequence[Vector]) -> list[float]:
    """The cosine of the angle to each vector. Vectors of another size are as far as can be."""
    same = [len(vector) == len(query) for vector in vectors]
    numpy = _numpy()
    if numpy is not None and any(same):
        rows = numpy.frombuffer(b"".join(v for v, fit in zip(vectors, same, strict=True) if fit), numpy.float32)
        found = iter((rows.reshape(-1, len(query) // 4) @ numpy.frombuffer(query, numpy.float32)).tolist())
        return [next(found) if fit else -1.0 for fit in same]
    asked = _floats(query)
    return [
        sum(map(operator.mul, asked, _floats(vector))) if fit else -1.0
        for vector, fit in zip(vectors, same, strict=True)
    ]


def _floats(vector: Vector) -> array[float]:
    values = array("f")
    values.frombytes(vector)
    return values
