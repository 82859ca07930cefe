"""A circuit breaker: what keeps failing is left alone for a while, so that it costs its callers nothing.

Closed, every call goes through. After ``failures`` failures in a row it opens: calls are turned away at once for a
rest that doubles from ``rest_s`` to ``longest_rest_s``. Then one call at a time is let through as a trial; its success
closes the breaker, its failure begins the next rest.
"""

from __future__ import annotations

from nagaya.kernel.clock import Clock


class Breaker:
    """The breaker of one thing. No I/O and no waiting; to be used in one event loop.

    Every admitted call ends with ``succeeded``, ``failed`` or ``undecided`` (it was cancelled, or failed for a reason
    that says nothing about the thing's health).
    """

    __slots__ = ("_clock", "_failed", "_failures", "_longest_rest_s", "_open_until_s", "_rest_s", "_rests", "_trying")

    def __init__(self, clock: Clock, *, failures: int = 5, rest_s: float = 1.0, longest_rest_s: float = 30.0) -> None:
        self._clock = clock
        self._failures = failures
        self._rest_s = rest_s
        self._longest_rest_s = longest_rest_s
        self._failed = 0
        self._rests = 0
        self._open_until_s = 0.0
        self._trying = False

    @property
    def is_open(self) -> bool:
        """Whether calls are turned away, but for trials."""
        return self._failed >= self._failures

    def admit(self) -> bool:
        """Whether a call may go through now."""
        if not self.is_open:
            return True
        if self._trying or self._clock.monotonic_s() < self._open_until_s:
            return False
        self._trying = True
        return True

    def retry_after_s(self) -> float:
        """How long until a trial is let through; 0 while closed."""
        return max(0.0, self._open_until_s - self._clock.monotonic_s()) if self.is_open else 0.0

    def succeeded(self) -> None:
        """The thing answered."""
        self._failed = self._rests = 0
        self._trying = False

    def failed(self) -> None:
        """The thing did not answer, or answered with an outage."""
        if self.is_open and not self._trying:
            # Let through before it opened, with others that failed together: it tells nothing new.
            return
        self._trying = False
        self._failed += 1
        if self.is_open:
            rest_s = min(self._rest_s * 2**self._rests, self._longest_rest_s)
            self._open_until_s = self._clock.monotonic_s() + rest_s
            self._rests = min(self._rests + 1, 16)

    def undecided(self) -> None:
        """The call says nothing about the thing's health."""
        self._trying = False
