"""How many permits are granted, as a decision without a server: the same as Valkey's script decides."""

from __future__ import annotations

import pytest

from nagaya.cache.permits import AHEAD_S, Grant, settled

NOW_S = 1_750_000_000


@pytest.mark.parametrize(
    ("counts", "spent", "wanted", "limit", "grant"),
    [
        ({}, 0, 4, 10, Grant(4, 6, 0)),
        ({}, 0, 0, 10, Grant(0, 10, 0)),
        ({-5: 4}, 3, 9, 10, Grant(3, 0, 56)),
        ({-5: 4, 0: 6}, 5, 1, 10, Grant(0, 0, 61)),
        ({-60: 10}, 0, 5, 10, Grant(0, 0, 1)),
        ({-61: 50, -40: 6, -20: 4}, 0, 5, 10, Grant(0, 0, 21)),
        ({-61: 50, -40: 6, -20: 4}, 7, 5, 10, Grant(0, 0, 41)),
        ({1000: 70, -1: 1}, 0, 5, 10, Grant(5, 4, 0)),
        ({AHEAD_S: 9}, 0, 5, 10, Grant(1, 0, 61)),
        ({}, 25, 5, 10, Grant(0, 0, 61)),
        ({}, 0, 5, 0, Grant(0, 0, 1)),
    ],
)
def test_permits_are_granted_up_to_the_limit_of_any_sixty_seconds(
    counts: dict[int, int], spent: int, wanted: int, limit: int, grant: Grant
) -> None:
    before = {NOW_S + second: count for second, count in counts.items()}
    after, given = settled(before, NOW_S, spent=spent, wanted=wanted, limit=limit)
    assert given == grant
    kept = {second: count for second, count in before.items() if NOW_S - 60 <= second <= NOW_S + AHEAD_S}
    assert sum(after.values()) == sum(kept.values()) + spent + grant.granted
    assert set(after) <= {*kept, NOW_S}


def test_what_is_counted_leaves_the_window_after_sixty_seconds() -> None:
    counts: dict[int, int] = {}
    granted: list[int] = []
    for second in range(0, 200, 10):
        counts, grant = settled(counts, NOW_S + second, spent=0, wanted=1, limit=3)
        granted.append(grant.granted)
    assert granted == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert len(counts) <= 3
