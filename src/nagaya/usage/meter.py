"""Counting what tenants use: in memory while they use it, added up in the registry every few seconds."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final, Protocol

import structlog

from nagaya.kernel.clock import Clock
from nagaya.kernel.ended import going_on
from nagaya.kernel.ids import new_id
from nagaya.tenancy.tenant import Tenant

FLUSH_S: Final = 5.0
"""How much use a crash can leave uncounted, in seconds."""

CLOSE_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Metric(StrEnum):
    """What is counted. The guide's names are sums of these: see :data:`GUIDE_METRICS`."""

    API_CALLS = "api_calls"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    EMBEDDING_TOKENS = "embedding_tokens"
    STORED_BYTES = "stored_bytes"


GUIDE_METRICS: Final[Mapping[str, tuple[Metric, ...]]] = {
    "APICallCount": (Metric.API_CALLS,),
    "StorageUsage": (Metric.STORED_BYTES,),
    "LLMTokenCount": (Metric.INPUT_TOKENS, Metric.OUTPUT_TOKENS, Metric.EMBEDDING_TOKENS),
}


class UsageSink(Protocol):
    """Where counts are added up; the registry is one."""

    async def add_usage(self, amounts: Mapping[tuple[str, str, str], int], *, source: str, at_us: int) -> None:
        """Add to the totals of (tenant id, month ``YYYY-MM``, metric), all or none, and once: moments of one source
        rise, and what comes again under one that was added is left out."""
        ...

    async def usage(self, tenant_id: str, month: str) -> Mapping[str, int]:
        """The totals of a month by metric."""
        ...


def month_of(at_us: int) -> str:
    """The UTC month of a moment, as ``YYYY-MM``."""
    return datetime.fromtimestamp(at_us / 1_000_000, UTC).strftime("%Y-%m")


class Meter:
    """Counts use; several processes may share a sink. To be used in one event loop.

    An error of the sink loses nothing: what could not be added is sent again with the next flush. Where the sink did
    not answer in time it is not known whether it was added; the sink itself then knows it again. Until it has answered,
    :meth:`totals` may show such use twice.
    """

    def __init__(self, sink: UsageSink, clock: Clock, *, flush_s: float = FLUSH_S) -> None:
        self._sink = sink
        self._clock = clock
        self._flush_s = flush_s
        self._counts: dict[tuple[str, Metric], int] = {}
        self._closed: dict[tuple[str, str, str], int] = {}
        self._sending: dict[tuple[str, str, str], int] = {}
        self._sent_at_us = 0
        self._source = new_id("meter")
        self._month = month_of(clock.now_us())
        self._month_ends_us = _end_of_month_us(clock.now_us())
        self._flushing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def count(self, tenant: Tenant, metric: Metric, amount: int = 1) -> None:
        """Add to this month's count, of a workspace to its tenant's too. Never waits, never raises for a positive
        amount."""
        at = (tenant.id, metric)
        self._counts[at] = self._counts.get(at, 0) + amount
        if tenant.parent is not None:
            at = (tenant.parent, metric)
            self._counts[at] = self._counts.get(at, 0) + amount

    def start(self) -> None:
        """Flush every few seconds until ``close()``."""
        if self._task is None:
            self._stopping.clear()
            self._task = asyncio.create_task(self._flush_always(), name="usage-meter")

    async def close(self) -> None:
        """Stop and flush what is counted; where the sink fails that is logged with the amounts. May be repeated."""
        self._stopping.set()
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait({task})
        try:
            await asyncio.wait_for(self._write(), CLOSE_S)
        except Exception as failure:
            # The last chance to keep them is the process's own log.
            self._close_counts()
            amounts = {" ".join(at): amount for at, amount in self._not_added().items()}
            _log.error("usage was not written", action="usage.lost", amounts=amounts, error=repr(failure))

    async def flush(self) -> None:
        """Add what was counted to the sink. Raises what the sink raises; the counts then wait for the next flush.

        Whoever is cancelled waits no longer, but the flush goes on: what was sent must not be sent again.
        """
        await asyncio.shield(going_on(self._write()))

    async def _write(self) -> None:
        async with self._flushing:
            self._close_counts()
            # First what was sent before and may have arrived: as it was, so that the sink knows it again.
            await self._send()
            self._sending, self._closed = self._closed, {}
            self._sent_at_us = max(self._clock.now_us(), self._sent_at_us + 1)
            await self._send()

    async def _send(self) -> None:
        if self._sending:
            await self._sink.add_usage(self._sending, source=self._source, at_us=self._sent_at_us)
            self._sending = {}

    def _not_added(self) -> Counter[tuple[str, str, str]]:
        return Counter(self._sending) + Counter(self._closed)

    async def totals(self, tenant: Tenant, month: str | None = None) -> dict[str, int]:
        """A tenant's totals of a month (default: this one), all metrics, with what is not yet flushed here."""
        month = month or month_of(self._clock.now_us())
        # What is being flushed meanwhile would be in neither, or in both.
        async with self._flushing:
            found = dict(await self._sink.usage(tenant.id, month))
            self._close_counts()
            for (tenant_id, counted_month, metric), amount in self._not_added().items():
                if tenant_id == tenant.id and counted_month == month:
                    found[metric] = found.get(metric, 0) + amount
        return {metric.value: found.get(metric.value, 0) for metric in Metric}

    def _close_counts(self) -> None:
        """Move the counts to the month in which they were made, to within a flush."""
        counts, self._counts = self._counts, {}
        for (tenant_id, metric), amount in counts.items():
            at = (tenant_id, self._month, metric.value)
            self._closed[at] = self._closed.get(at, 0) + amount
        now_us = self._clock.now_us()
        if now_us >= self._month_ends_us:
            self._month, self._month_ends_us = month_of(now_us), _end_of_month_us(now_us)

    async def _flush_always(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), self._flush_s)
                return
            try:
                await self.flush()
            except Exception as failure:
                # Counting goes on; the next flush brings what this one could not.
                _log.warning("usage cannot be written yet", action="usage.flush_failed", error=repr(failure))


def _end_of_month_us(at_us: int) -> int:
    now = datetime.fromtimestamp(at_us / 1_000_000, UTC)
    year, month = (now.year + 1, 1) if now.month == 12 else (now.year, now.month + 1)
    return int(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000
