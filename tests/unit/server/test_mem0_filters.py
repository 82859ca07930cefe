"""mem0's filters: what they find, whose memories they name, and what they refuse."""

from __future__ import annotations

import pytest

from nagaya.context.memory_records import TENANT, StoredMemory, owner_of_user
from nagaya.errors import InvalidValue
from nagaya.server.mem0.dates import date_of, end_of, span_of
from nagaya.server.mem0.filters import MAX_CONDITIONS, MAX_DEPTH, Users, parse_filters

NOON_US = 1_735_732_800_000_000  # 2025-01-01T12:00:00Z


def memory(**fields) -> StoredMemory:
    return StoredMemory(
        **{
            "id": "mem_1", "owner": owner_of_user("mio"), "text": "Mio likes Green tea", "created_at_us": NOON_US,
            "updated_at_us": NOON_US, "agent_id": "barista", "categories": ["drinks", "tea"],
            "metadata": {"n": 1, "star": True, "who": "Ken", "tags": ["a", "b"]}, **fields,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ({}, True),
        ({"user_id": "mio"}, True),
        ({"user_id": {"ne": "mio"}}, False),
        ({"user_id": "*"}, True),
        ({"agent_id": {"in": ["barista", "cook"]}}, True),
        ({"agent_id": {"nin": ["barista"]}}, False),
        ({"run_id": "*"}, False),
        ({"run_id": {"ne": "*"}}, True),
        ({"AND": [{"user_id": "mio"}, {"agent_id": "cook"}]}, False),
        ({"OR": [{"user_id": "ken"}, {"agent_id": "barista"}]}, True),
        ({"NOT": [{"agent_id": "cook"}, {"user_id": "ken"}]}, True),
        ({"NOT": [{"agent_id": "cook"}, {"user_id": "mio"}]}, False),
        ({"NOT": {"agent_id": "barista"}}, False),
        ({"user_id": "mio", "NOT": [{"agent_id": "cook"}]}, True),
        ({"categories": "tea"}, True),
        ({"categories": ["food", "tea"]}, True),
        ({"categories": {"contains": "te"}}, False),
        ({"categories": {"icontains": "TEA"}}, True),
        ({"categories": {"ne": "tea"}}, False),
        ({"categories": {"nin": ["food"]}}, True),
        ({"keywords": {"contains": "green"}}, False),
        ({"keywords": {"icontains": "green"}}, True),
        ({"memory_ids": ["mem_1"]}, True),
        ({"memory_ids": {"in": ["mem_2"]}}, False),
        ({"metadata": {"n": 1, "who": "Ken"}}, True),
        ({"metadata": {"n": True}}, False),
        ({"metadata": {"star": 1}}, False),
        ({"metadata": {"n": {"gt": 0, "lt": 2}}}, True),
        ({"metadata": {"who": {"gt": 0}}}, False),
        ({"metadata": {"star": {"gte": 0}}}, False),
        ({"metadata": {"who": {"icontains": "KE"}}}, True),
        ({"metadata": {"tags": {"contains": "a"}}}, True),
        ({"metadata": {"contains": {"n": 1}}}, True),
        ({"metadata": {"eq": {"n": 1}}}, False),
        ({"metadata": {"ne": {"n": 1}}}, True),
        ({"metadata": {"absent": {"ne": "x"}}}, True),
        ({"created_at": "2025-01-01"}, True),
        ({"created_at": {"ne": "2025-01-01"}}, False),
        ({"created_at": {"lte": "2025-01-01"}}, True),
        ({"created_at": {"gt": "2025-01-01"}}, False),
        ({"created_at": {"lt": "2025-01-01T21:00:01+09:00", "gte": 1_735_732_800}}, True),
        ({"updated_at": {"gt": "2025-01-01T12:00:00"}}, False),
        ({"timestamp": {"gte": "2024-12-31"}}, True),
    ],
)
def test_a_filter_finds_what_it_says(shape, fits):
    assert parse_filters(shape).fits(memory()) is fits


def test_a_memory_of_the_tenant_is_no_users():
    assert not parse_filters({"user_id": "*"}).fits(memory(owner=TENANT))
    assert not parse_filters({"user_id": "tenant"}).fits(memory(owner=TENANT))


@pytest.mark.parametrize(
    ("shape", "users"),
    [
        ({"agent_id": "x"}, None),
        ({"user_id": "mio"}, Users(frozenset({"mio"}))),
        ({"user_id": {"in": ["mio", "ken"]}}, Users(frozenset({"mio", "ken"}))),
        ({"AND": [{"user_id": {"in": ["mio", "ken"]}}, {"user_id": "ken"}]}, Users(frozenset({"ken"}))),
        ({"AND": [{"user_id": "*"}, {"user_id": "ken"}]}, Users(frozenset({"ken"}))),
        ({"OR": [{"user_id": "mio"}, {"agent_id": "x"}]}, Users(frozenset({"mio"}), own=True)),
        ({"OR": [{"agent_id": "y"}, {"agent_id": "x"}]}, None),
        ({"NOT": [{"user_id": "mio"}]}, Users(all=True)),
        ({"NOT": [{"agent_id": "x"}]}, None),
        ({"user_id": {"ne": "mio"}}, Users(all=True)),
    ],
)
def test_a_filter_tells_whose_memories_it_can_find(shape, users):
    assert parse_filters(shape).users == users


@pytest.mark.parametrize(
    "shape",
    [
        {"color": "red"},
        {"user_id": 1},
        {"user_id": ["mio"]},
        {"agent_id": None},
        {"agent_id": {}},
        {"agent_id": {"contains": "x"}},
        {"agent_id": {"like": "x"}},
        {"agent_id": {"in": "x"}},
        {"categories": {"gt": "a"}},
        {"keywords": "tea"},
        {"keywords": {"contains": 1}},
        {"memory_ids": "mem_1"},
        {"metadata": "x"},
        {"metadata": {"n": {"gt": True}}},
        {"created_at": {"gte": "yesterday"}},
        {"created_at": {"like": "2025"}},
        {"created_at": True},
        {"AND": []},
        {"OR": {"user_id": "mio"}},
        {"AND": ["mio"]},
    ],
)
def test_a_filter_that_is_not_understood_is_refused_by_its_place(shape):
    with pytest.raises(InvalidValue) as told:
        parse_filters(shape)
    assert (told.value.param or "").startswith("filters.")


def test_filters_are_limited_in_depth_and_number():
    shape: dict = {"agent_id": "x"}
    for _ in range(MAX_DEPTH):
        shape = {"AND": [shape]}
    with pytest.raises(InvalidValue, match="deep"):
        parse_filters(shape)
    with pytest.raises(InvalidValue, match="conditions"):
        parse_filters({"OR": [{"agent_id": "x"}] * (MAX_CONDITIONS + 1)})


def test_a_memory_lasts_through_its_last_day():
    ends = end_of("2025-01-01", NOON_US)
    assert ends == 1_735_776_000
    assert date_of(ends) == "2025-01-01"
    assert date_of(None) is None
    for wrong in ("2024-12-31", "2025-02-30", "20250102", "9999-12-31", "tomorrow"):
        with pytest.raises(InvalidValue):
            end_of(wrong, NOON_US)
    assert span_of("2025-01-01", "x").upto_us - span_of("2025-01-01", "x").from_us == 86_400_000_000
    with pytest.raises(InvalidValue):
        span_of("9999-12-31", "x")
