"""Filters over attributes, as the OpenAI vector stores API has them: comparisons, joined by ``and`` and ``or``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from nagaya.errors import InvalidValue

AttributeValue: TypeAlias = str | int | float | bool
Attributes: TypeAlias = Mapping[str, AttributeValue]
Filter: TypeAlias = Callable[[Attributes], bool]

MAX_DEPTH: Final = 8
MAX_COMPARISONS: Final = 128
_MISSING: Final = object()


def parse_filter(shape: object, *, at: str = "filters") -> Filter:
    """A test of attributes from its JSON shape: ``{"type": "eq", "key": …, "value": …}`` or ``{"type": "and",
    "filters": […]}``. Raises ``InvalidValue`` naming the place.

    Values are equal only within their kind: ``1`` is neither ``"1"`` nor ``true``. Texts are ordered by their code
    points. What lacks the attribute, or has it in another kind, is unequal to everything and neither more nor less.
    """
    return _Parser().parse(shape, at, 1)


class _Parser:
    def __init__(self) -> None:
        self._comparisons = 0

    def parse(self, shape: object, at: str, depth: int) -> Filter:
        if not isinstance(shape, Mapping):
            raise InvalidValue(at=at, detail="a filter is an object")
        if depth > MAX_DEPTH:
            raise InvalidValue(at=at, detail=f"filters may be nested {MAX_DEPTH} deep")
        kind = shape.get("type")
        if kind in ("and", "or"):
            _only(shape, at, "type", "filters")
            return self._compound(str(kind), shape.get("filters"), at, depth)
        _only(shape, at, "type", "key", "value")
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise InvalidValue(at=at, detail=f"at most {MAX_COMPARISONS} comparisons")
        key, value = shape.get("key"), shape.get("value", _MISSING)
        if not isinstance(key, str) or not key:
            raise InvalidValue(at=f"{at}.key", detail="the name of an attribute")
        return _comparison(kind, key, value, at)

    def _compound(self, kind: str, parts: object, at: str, depth: int) -> Filter:
        if not isinstance(parts, list | tuple) or not parts:
            raise InvalidValue(at=f"{at}.filters", detail="one filter or more")
        tests = [self.parse(part, f"{at}.filters[{number}]", depth + 1) for number, part in enumerate(parts)]
        if kind == "and":
            return lambda attributes: all(test(attributes) for test in tests)
        return lambda attributes: any(test(attributes) for test in tests)


def _only(shape: Mapping[Any, Any], at: str, *known: str) -> None:
    for name in shape:
        if name not in known:
            raise InvalidValue(at=f"{at}.{name}", detail=f"known here: {', '.join(known)}")


def _comparison(kind: object, key: str, value: object, at: str) -> Filter:
    if kind in ("in", "nin"):
        if not isinstance(value, list | tuple) or not value:
            raise InvalidValue(at=f"{at}.value", detail="a list of one value or more")
        wanted = frozenset(_comparable(each, f"{at}.value[{number}]") for number, each in enumerate(value))
        if kind == "in":
            return lambda attributes: _typed(attributes.get(key)) in wanted
        return lambda attributes: _typed(attributes.get(key)) not in wanted
    one = _comparable(value, f"{at}.value")
    if kind == "eq":
        return lambda attributes: _typed(attributes.get(key)) == one
    if kind == "ne":
        return lambda attributes: _typed(attributes.get(key)) != one
    if not isinstance(kind, str) or kind not in _ORDERS:
        raise InvalidValue(at=f"{at}.type", detail="eq, ne, gt, gte, lt, lte, in, nin, and, or")
    if one[0] is bool:
        raise InvalidValue(at=f"{at}.value", detail="a number or a text; true and false have no order")
    holds = _ORDERS[kind]

    def ordered(attributes: Attributes) -> bool:
        found = _typed(attributes.get(key))
        return found[0] is one[0] and holds(found[1], one[1])

    return ordered


_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": lambda found, wanted: found > wanted,
    "gte": lambda found, wanted: found >= wanted,
    "lt": lambda found, wanted: found < wanted,
    "lte": lambda found, wanted: found <= wanted,
}


def _comparable(value: object, at: str) -> tuple[type, Any]:
    typed = _typed(value)
    if typed[0] is type(None) or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidValue(at=at, detail="a text, a number, true or false")
    return typed


def _typed(value: object) -> tuple[type, Any]:
    # In Python True == 1; here a switch is no number.
    if isinstance(value, bool):
        return bool, value
    if isinstance(value, int | float):
        return float, value
    return (str, value) if isinstance(value, str) else (type(None), None)


def check_attributes(attributes: Attributes, *, at: str = "attributes") -> None:
    """Raise ``InvalidValue`` unless there are at most 16, with names of 1 to 64 and texts of at most 512 characters."""
    if len(attributes) > 16:
        raise InvalidValue(at=at, detail="at most 16 attributes")
    for name, value in attributes.items():
        if not 1 <= len(name) <= 64:
            raise InvalidValue(at=at, detail="names of 1 to 64 characters")
        if isinstance(value, str) and len(value) > 512:
            raise InvalidValue(at=f"{at}.{name}", detail="at most 512 characters")
        _comparable(value, f"{at}.{name}")
