"""Filters over attributes, against a truth table and against what must be refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.errors import InvalidValue
from nagaya.indexes.filters import check_attributes, parse_filter

ROW = {"lang": "ja", "year": 2024, "share": 0.5, "public": True}


def one(kind: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


@pytest.mark.parametrize(
    ("kind", "key", "value", "holds"),
    [
        ("eq", "lang", "ja", True),
        ("eq", "lang", "en", False),
        ("eq", "year", 2024.0, True),
        ("eq", "year", "2024", False),
        ("eq", "public", True, True),
        ("eq", "public", 1, False),
        ("eq", "absent", "x", False),
        ("ne", "lang", "en", True),
        ("ne", "lang", "ja", False),
        ("ne", "absent", "x", True),
        ("ne", "public", 1, True),
        ("gt", "year", 2023, True),
        ("gt", "year", 2024, False),
        ("gt", "lang", "en", True),
        ("gt", "lang", 1, False),
        ("gt", "absent", 1, False),
        ("gt", "public", 0, False),
        ("gte", "year", 2024, True),
        ("gte", "year", 2024.5, False),
        ("lt", "share", 1, True),
        ("lt", "share", 0.5, False),
        ("lte", "share", 0.5, True),
        ("lte", "absent", 9, False),
        ("in", "lang", ["en", "ja"], True),
        ("in", "lang", ["en"], False),
        ("in", "year", ["2024"], False),
        ("in", "absent", ["x"], False),
        ("nin", "lang", ["en"], True),
        ("nin", "lang", ["ja", "en"], False),
        ("nin", "absent", ["x"], True),
    ],
)
def test_truth_table(kind: str, key: str, value: Any, holds: bool) -> None:
    assert parse_filter(one(kind, key, value))(ROW) is holds


def test_and_or_are_joined_as_written() -> None:
    yes, no = one("eq", "lang", "ja"), one("eq", "lang", "en")
    for kind, parts, holds in [
        ("and", [yes, yes], True),
        ("and", [yes, no], False),
        ("or", [no, yes], True),
        ("or", [no, no], False),
        ("and", [yes, {"type": "or", "filters": [no, yes]}], True),
    ]:
        assert parse_filter({"type": kind, "filters": parts})(ROW) is holds


def nested(depth: int) -> dict[str, Any]:
    inner = one("eq", "lang", "ja")
    for _ in range(depth):
        inner = {"type": "and", "filters": [inner]}
    return inner


@pytest.mark.parametrize(
    ("shape", "at"),
    [
        ("lang", "filters"),
        (None, "filters"),
        ({}, "filters.key"),
        ({"type": "eq", "key": "lang"}, "filters.value"),
        ({"type": "like", "key": "lang", "value": "j"}, "filters.type"),
        ({"type": ["eq"], "key": "lang", "value": "j"}, "filters.type"),
        (one("eq", "", "x"), "filters.key"),
        (one("eq", "lang", None), "filters.value"),
        (one("eq", "lang", ["ja"]), "filters.value"),
        (one("eq", "lang", float("nan")), "filters.value"),
        (one("gt", "public", True), "filters.value"),
        (one("in", "lang", "ja"), "filters.value"),
        (one("in", "lang", []), "filters.value"),
        (one("nin", "lang", ["ja", {}]), "filters.value[1]"),
        ({**one("eq", "lang", "ja"), "tenant_id": "globex"}, "filters.tenant_id"),
        ({"type": "and", "filters": []}, "filters.filters"),
        ({"type": "or", "filters": [one("eq", "lang", "ja"), 1]}, "filters.filters[1]"),
        ({"type": "and", "filters": [one("eq", "a", 1)] * 129}, "filters.filters[128]"),
        (nested(8), "filters" + ".filters[0]" * 8),
    ],
)
def test_what_is_no_filter_is_refused_by_its_place(shape: Any, at: str) -> None:
    with pytest.raises(InvalidValue, match=re.escape(f"'{at}'")):
        parse_filter(shape)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["eq", "and", "in", "type", "key", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "key", "value", "filters"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_whatever_is_sent_is_a_filter_or_refused(shape: Any) -> None:
    try:
        tested = parse_filter(shape)
    except InvalidValue:
        return
    assert tested(ROW) in (True, False)


@pytest.mark.parametrize(
    "attributes",
    [
        {f"k{number}": 1 for number in range(17)},
        {"": 1},
        {"k" * 65: 1},
        {"k": "x" * 513},
        {"k": float("inf")},
        {"k": None},
        {"k": ["x"]},
    ],
)
def test_attributes_beyond_their_bounds_are_refused(attributes: Any) -> None:
    with pytest.raises(InvalidValue):
        check_attributes(attributes)


def test_attributes_within_their_bounds_pass() -> None:
    check_attributes(ROW)
