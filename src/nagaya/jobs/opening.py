"""How the platform opens its background work."""

from __future__ import annotations

from nagaya.jobs.driver import OpenSession
from nagaya.jobs.durable import DurableJobs
from nagaya.jobs.record import load_signer
from nagaya.jobs.running import EndHook
from nagaya.kernel.clock import Clock
from nagaya.records.sealed_store import SealedStore
from nagaya.settings import Settings


async def open_jobs(
    settings: Settings, platform: SealedStore, clock: Clock, open_session: OpenSession, *, on_end: EndHook
) -> DurableJobs:
    """The platform's background work: on the PostgreSQL server that holds the registry, or in the data folder.

    ``platform`` is the platform's own room, where the key lies that authenticates jobs. Nothing else is opened until
    the first job, or ``start``. Raises the errors of the platform's store.
    """
    signer = await load_signer(platform)
    return DurableJobs(settings.registry, settings.folder, signer, clock, open_session, on_end=on_end)
