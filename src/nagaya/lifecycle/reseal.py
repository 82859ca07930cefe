"""The sweep after a key rotation: what older versions sealed is sealed anew, a page at a time, beside the work."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from nagaya.records.sealed_store import SealedStore

PAGE: Final = 100
PAUSE_S: Final = 0.02
"""Between two pages, so that a sweep of a large tenant takes a small share of the server."""

_log = structlog.get_logger(__name__)


async def reseal_all(records: SealedStore) -> int:
    """Seal every record of a room under its active key version; gives how many were not yet. May be repeated.

    Records that do not open are left as they are and logged. Another process may still seal under the former version
    for 30 s, so a sweep is complete when a later one gives 0.
    """
    resealed = broken = 0
    after: tuple[str, bytes] | None = None
    while True:
        step = await records.reseal(limit=PAGE, after=after)
        resealed += step.resealed
        broken += step.broken
        after = step.after
        if after is None:
            break
        await asyncio.sleep(PAUSE_S)
    if broken:
        _log.error("records that do not open", action="key.reseal_broken", broken=broken)
    return resealed
