"""The kinds of background work that the platform itself brings, and those that other packages do."""

from __future__ import annotations

import asyncio
from importlib.metadata import EntryPoint, entry_points
from typing import Final

import structlog

from nagaya.jobs.driver import Jobs, RunningJob, Work
from nagaya.lifecycle.reseal import reseal_all

KEY_RESEAL: Final = "key.reseal"
"""Seals anew, under the active key version, what earlier ones sealed. No arguments. Harmless to repeat."""

GROUP: Final = "nagaya.jobs"
"""The entry points by which another package brings kinds of work: the kind's name, and the coroutine function."""

_log = structlog.get_logger(__name__)


async def reseal(job: RunningJob) -> None:
    """The work of ``key.reseal``."""
    resealed = await reseal_all(job.session.records)
    job.progress(resealed, resealed)
    _log.info("records sealed anew", action="key.resealed", tenant=job.tenant.id, records=resealed)


def register_jobs(jobs: Jobs) -> None:
    """Make known what there is to do, the platform's own last: none of another package's takes its place. Every server
    does so before it starts. Nothing of other packages is loaded before the first job of its kind."""
    for entry in entry_points(group=GROUP):
        jobs.register(entry.name, _loaded_late(entry))
    jobs.register(KEY_RESEAL, reseal)


def _loaded_late(entry: EntryPoint) -> Work:
    async def work(job: RunningJob) -> None:
        # In a thread: a package may take a second to load, which every tenant would wait for.
        found: Work = await asyncio.to_thread(entry.load)
        await found(job)

    return work
