"""The daily work on a tenant's room: what has come to its end is removed for good."""

from __future__ import annotations

from typing import Final

from nagaya.context.ending import end_conversations
from nagaya.context.idempotency import end_claims
from nagaya.context.library.files import end_files, sweep_uploads
from nagaya.context.library.indexing import Indexing
from nagaya.context.library.stores import forget_file
from nagaya.context.memory_records import end_memories
from nagaya.jobs.driver import RunningJob

TENANT_SWEEP: Final = "tenant.sweep"
"""The kind of job that does it. No arguments. Harmless to repeat."""


async def sweep(job: RunningJob) -> None:
    """The work of ``tenant.sweep``."""
    await end_conversations(job.session)
    await end_files(job.session, (forget_file,))
    await sweep_uploads(job.session)
    await Indexing(job.session).clear_all()
    await end_memories(job.session)
    await end_claims(job.session)
