"""The circuit breaker, at every turn of its life."""

from __future__ import annotations

import pytest

from nagaya.kernel.breaker import Breaker
from nagaya.testing.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return Breaker(clock, failures=3, rest_s=2.0, longest_rest_s=8.0)


def fail(breaker: Breaker, times: int) -> None:
    for _ in range(times):
        assert breaker.admit()
        breaker.failed()


def test_failures_that_are_not_in_a_row_leave_it_closed(breaker: Breaker):
    for _ in range(10):
        fail(breaker, 2)
        assert breaker.admit()
        breaker.succeeded()
    assert not breaker.is_open
    assert breaker.retry_after_s() == 0


def test_after_failures_in_a_row_calls_are_turned_away_for_the_rest(breaker: Breaker, clock: ManualClock):
    fail(breaker, 3)
    assert breaker.is_open
    assert breaker.retry_after_s() == 2.0
    clock.advance(1.9)
    assert not breaker.admit()


def test_one_trial_at_a_time_is_let_through_after_the_rest(breaker: Breaker, clock: ManualClock):
    fail(breaker, 3)
    clock.advance(2.0)
    assert breaker.admit()
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert breaker.admit()


def test_the_rest_doubles_with_every_failed_trial_to_its_longest(breaker: Breaker, clock: ManualClock):
    fail(breaker, 3)
    for rest_s in (4.0, 8.0, 8.0):
        clock.advance(breaker.retry_after_s())
        fail(breaker, 1)
        assert breaker.retry_after_s() == rest_s


def test_a_trial_that_was_cancelled_lets_the_next_one_through(breaker: Breaker, clock: ManualClock):
    fail(breaker, 3)
    clock.advance(2.0)
    assert breaker.admit()
    breaker.undecided()
    assert breaker.admit()


def test_many_that_fail_together_cost_one_rest_and_not_the_longest(breaker: Breaker, clock: ManualClock):
    for _ in range(20):
        assert breaker.admit()
    for _ in range(20):
        breaker.failed()
    assert breaker.retry_after_s() == 2.0
    clock.advance(2.0)
    assert breaker.admit()
    breaker.failed()
    assert breaker.retry_after_s() == 4.0
