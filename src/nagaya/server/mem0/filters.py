"""mem0's filters: conditions on a memory's fields, joined by ``AND``, ``OR``, ``NOT``, and whose memories they name."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from nagaya.context.memory_records import TENANT, USER, StoredMemory
from nagaya.context.memory_shapes import Filter
from nagaya.errors import InvalidValue
from nagaya.server.mem0.dates import Span, span_of

MAX_DEPTH: Final = 8
MAX_CONDITIONS: Final = 128
ANYTHING: Final = "*"
LABELS: Final = ("agent_id", "app_id", "run_id")
_JOINS: Final = ("AND", "OR", "NOT")
_FIELDS: Final = (
    "user_id", *LABELS, "created_at", "timestamp", "updated_at", "categories", "keywords", "memory_ids", "metadata",
)  # fmt: skip
_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le,
}  # fmt: skip
_ANY: Final = ("eq", "ne", "in", "nin", "contains", "icontains", *_ORDERS)
_OPERATORS: Final = frozenset(_ANY)


class Users(NamedTuple):
    """Whose memories a filter can find: those of ``named``, with ``own`` the caller's too, with ``all`` anybody's."""

    named: frozenset[str] = frozenset()
    own: bool = False
    all: bool = False


_OWN: Final = Users(own=True)
_ALL: Final = Users(all=True)


class Where(NamedTuple):
    """A filter that was read: its test, and the users that it names (None: it says nothing of users)."""

    fits: Filter
    users: Users | None


def parse_filters(shape: Mapping[str, Any], at: str = "filters") -> Where:
    """A filter from its JSON shape. Raises ``InvalidValue`` naming the place.

    Fields of one object must all fit. A text ``*`` stands for any value that is there. Values are equal only within
    their kind: ``1`` is neither ``"1"`` nor ``true``. A filter that names no user finds the caller's own memories.
    """
    return _Parser().parse(shape, at, 1)


class _Parser:
    def __init__(self) -> None:
        self._conditions = 0

    def parse(self, shape: object, at: str, depth: int) -> Where:
        if not isinstance(shape, Mapping):
            raise InvalidValue(param=at, at=at, detail="a filter is an object")
        if depth > MAX_DEPTH:
            raise InvalidValue(param=at, at=at, detail=f"filters may be nested {MAX_DEPTH} deep")
        parts = [self._part(name, value, f"{at}.{name}", depth) for name, value in shape.items()]
        return _both(parts)

    def _part(self, name: str, value: object, at: str, depth: int) -> Where:
        if name in _JOINS:
            if name == "NOT" and isinstance(value, Mapping):
                value = [value]
            if not isinstance(value, list) or not value:
                raise InvalidValue(param=at, at=at, detail="a list of one filter or more")
            parts = [self.parse(one, f"{at}[{number}]", depth + 1) for number, one in enumerate(value)]
            return {"AND": _both, "OR": _either, "NOT": _neither}[name](parts)
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise InvalidValue(param=at, at=at, detail=f"at most {MAX_CONDITIONS} conditions")
        if name == "user_id":
            return _user(value, at)
        if name not in _FIELDS:
            raise InvalidValue(param=at, at=at, detail=f"known are {', '.join((*_FIELDS, *_JOINS))}")
        return Where(_condition(name, value, at), None)


def _both(parts: list[Where]) -> Where:
    tests = [part.fits for part in parts]
    users: Users | None = None
    for part in parts:
        users = part.users if users is None else users if part.users is None else _narrower(users, part.users)
    return Where(lambda memory: all(test(memory) for test in tests), users)


def _either(parts: list[Where]) -> Where:
    tests = [part.fits for part in parts]
    users = None
    if any(part.users is not None for part in parts):
        each = [part.users or _OWN for part in parts]
        named = frozenset[str]().union(*(one.named for one in each))
        users = Users(named, any(one.own for one in each), any(one.all for one in each))
    return Where(lambda memory: any(test(memory) for test in tests), users)


def _neither(parts: list[Where]) -> Where:
    tests = [part.fits for part in parts]
    users = None if all(part.users is None for part in parts) else _ALL
    return Where(lambda memory: not any(test(memory) for test in tests), users)


def _narrower(one: Users, other: Users) -> Users:
    """Whom both may mean. More than that is never wrong: the test decides of each memory."""
    if one.all or other.all:
        return other if one.all else one
    if one.own or other.own:
        return Users(one.named | other.named, own=True)
    return Users(one.named & other.named)


def _user(value: object, at: str) -> Where:
    def named(test: Filter, *users: object) -> Where:
        return Where(test, Users(frozenset(each for each in users if isinstance(each, str))))

    fits = _condition("user_id", value, at)
    if isinstance(value, str):
        return Where(fits, _ALL) if value == ANYTHING else named(fits, value)
    if isinstance(value, Mapping) and len(value) == 1:
        if "eq" in value and value["eq"] != ANYTHING:
            return named(fits, value["eq"])
        if "in" in value:
            return named(fits, *value["in"])
    return Where(fits, _ALL)


# --- one field ---


def _condition(name: str, value: object, at: str) -> Filter:
    if name == "metadata":
        return _metadata(value, at)
    if name in ("created_at", "timestamp", "updated_at"):
        return _time("updated_at_us" if name == "updated_at" else "created_at_us", value, at)
    if name == "categories":
        return _for_each(lambda memory: memory.categories, value, at)
    if name == "keywords":
        test = _test(value, at, among=("contains", "icontains"))
        return lambda memory: test(memory.text)
    if name == "memory_ids":
        wanted = _texts(value["in"] if isinstance(value, Mapping) and set(value) == {"in"} else value, at)
        return lambda memory: memory.id in wanted
    if isinstance(value, bool | int | float | list) or value is None:
        raise InvalidValue(param=at, at=at, detail="a text, or an object with eq, ne, in or nin")
    test = _test(value, at, among=("eq", "ne", "in", "nin"))
    if name == "user_id":
        return lambda memory: test(None if memory.owner == TENANT else memory.owner.removeprefix(USER))
    return lambda memory: test(getattr(memory, name))


def _texts(value: object, at: str) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidValue(param=at, at=at, detail="a list of texts")
    return frozenset(value)


def _for_each(read: Callable[[StoredMemory], list[str]], value: object, at: str) -> Filter:
    """A condition on a list: some entry fits it; with ``ne`` and ``nin`` none is what they name."""
    if isinstance(value, list):
        value = {"in": value}
    test = _test(value, at, among=("eq", "ne", "in", "nin", "contains", "icontains"), whole=True)
    if isinstance(value, Mapping) and set(value) <= {"ne", "nin"}:
        return lambda memory: all(test(one) for one in read(memory))
    return lambda memory: any(test(one) for one in read(memory))


def _metadata(value: object, at: str) -> Filter:
    if not isinstance(value, Mapping):
        raise InvalidValue(param=at, at=at, detail="an object")
    if len(value) == 1 and isinstance(inner := next(iter(value.values())), Mapping):
        kind = next(iter(value))
        if kind in ("eq", "ne"):
            return lambda memory: _equal(memory.metadata, inner) is (kind == "eq")
        if kind == "contains":
            value = inner
    tests = [(name, _test(one, f"{at}.{name}")) for name, one in value.items()]
    return lambda memory: all(test(memory.metadata.get(name)) for name, test in tests)


def _test(value: object, at: str, *, among: tuple[str, ...] = _ANY, whole: bool = False) -> Callable[[Any], bool]:
    """What one value must be: equal to ``value``, or what its operators say. ``whole``: a text contains only itself."""
    is_operators = isinstance(value, Mapping) and bool(value) and set(value) <= _OPERATORS
    if not isinstance(value, Mapping) or (among is _ANY and not is_operators):
        if "eq" not in among:
            raise InvalidValue(param=at, at=at, detail=f"an object with {' or '.join(among)}")
        return _compared("eq", value, at, whole)
    if not value:
        raise InvalidValue(param=at, at=at, detail=f"an object with {' or '.join(among)}")
    for kind in value:
        if kind not in among:
            raise InvalidValue(param=at, at=f"{at}.{kind}", detail=f"known here: {', '.join(among)}")
    tests = [_compared(kind, wanted, f"{at}.{kind}", whole) for kind, wanted in value.items()]
    return lambda found: all(test(found) for test in tests)


def _compared(kind: str, wanted: Any, at: str, whole: bool) -> Callable[[Any], bool]:
    if kind in ("in", "nin"):
        if not isinstance(wanted, list) or not wanted:
            raise InvalidValue(param=at, at=at, detail="a list of one value or more")
        return lambda found: any(_equal(found, one) for one in wanted) is (kind == "in")
    if kind in _ORDERS:
        if isinstance(wanted, bool) or not isinstance(wanted, str | int | float):
            raise InvalidValue(param=at, at=at, detail="a number or a text")
        holds = _ORDERS[kind]
        return lambda found: _same_kind(found, wanted) and holds(found, wanted)
    if kind in ("contains", "icontains"):
        if not isinstance(wanted, str):
            raise InvalidValue(param=at, at=at, detail="a text")
        return _containing(wanted, folded=kind == "icontains", whole=whole)
    if wanted == ANYTHING:
        return lambda found: (found is not None) is (kind == "eq")
    return lambda found: _equal(found, wanted) is (kind == "eq")


def _containing(wanted: str, *, folded: bool, whole: bool) -> Callable[[Any], bool]:
    def as_compared(text: str) -> str:
        return text.casefold() if folded else text

    sought = as_compared(wanted)

    def test(found: Any) -> bool:
        if isinstance(found, list):
            return any(isinstance(one, str) and as_compared(one) == sought for one in found)
        if not isinstance(found, str):
            return False
        return as_compared(found) == sought if whole else sought in as_compared(found)

    return test


def _equal(found: Any, wanted: Any) -> bool:
    # In Python True == 1; here a switch is no number.
    return isinstance(found, bool) is isinstance(wanted, bool) and bool(found == wanted)


def _same_kind(found: Any, wanted: Any) -> bool:
    if isinstance(found, bool):
        return False
    return isinstance(found, str) if isinstance(wanted, str) else isinstance(found, int | float)


def _time(name: str, value: object, at: str) -> Filter:
    conditions = value if isinstance(value, Mapping) else {"eq": value}
    tests = []
    for kind, wanted in conditions.items():
        if kind not in _MOMENTS:
            raise InvalidValue(param=at, at=f"{at}.{kind}", detail=f"known here: {', '.join(_MOMENTS)}")
        tests.append((_MOMENTS[kind], span_of(wanted, f"{at}.{kind}")))
    return lambda memory: all(holds(getattr(memory, name), span) for holds, span in tests)


_MOMENTS: Final[Mapping[str, Callable[[int, Span], bool]]] = {
    "eq": lambda at_us, span: span.from_us <= at_us < span.upto_us,
    "ne": lambda at_us, span: not span.from_us <= at_us < span.upto_us,
    "gt": lambda at_us, span: at_us >= span.upto_us,
    "gte": lambda at_us, span: at_us >= span.from_us,
    "lt": lambda at_us, span: at_us < span.from_us,
    "lte": lambda at_us, span: at_us < span.upto_us,
}
