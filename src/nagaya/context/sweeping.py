"""The daily work on a tenant's room: what has come to its end is removed for good."""

from __future__ import annotations

from typing import Final

from nagaya.context.ending import end_conversations
from nagaya.context.library.files import end_files, sweep_uploads
from nagaya.jobs.driver import RunningJob

TENANT_SWEEP: Final = "tenant.sweep"
"""The kind of job that does it. No arguments. Harmless to repeat."""


async def sweep(job: RunningJob) -> None:
    """The work of ``tenant.sweep``."""
    await end_conversations(job.session)
    await end_files(job.session)
    await sweep_uploads(job.session)
