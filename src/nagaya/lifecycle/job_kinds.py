"""The kinds of background work that the platform itself brings."""

from __future__ import annotations

from typing import Final

import structlog

from nagaya.jobs.driver import Jobs, RunningJob
from nagaya.lifecycle.reseal import reseal_all

KEY_RESEAL: Final = "key.reseal"
"""Seals anew, under the active key version, what earlier ones sealed. No arguments. Harmless to repeat."""

_log = structlog.get_logger(__name__)


async def reseal(job: RunningJob) -> None:
    """The work of ``key.reseal``."""
    resealed = await reseal_all(job.session.records)
    job.progress(resealed, resealed)
    _log.info("records sealed anew", action="key.resealed", tenant=job.tenant.id, records=resealed)


def register_builtin_jobs(jobs: Jobs) -> None:
    """Make the platform's own kinds of work known. Every server does so before it starts."""
    jobs.register(KEY_RESEAL, reseal)
