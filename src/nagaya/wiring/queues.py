"""The queues of the settings: listened to while the server runs, each for as long as its tenant is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from nagaya.errors import MissingExtra, NagayaError, SettingsInvalid
from nagaya.kernel.ended import ended
from nagaya.settings import Queue
from nagaya.tenancy.names import room_of
from nagaya.tenancy.tenant import Tenant
from nagaya.wiring.resources import PLATFORM_ROOM

if TYPE_CHECKING:
    from nagaya.wiring.platform import Nagaya

REST_S: Final = 1.0
LONGEST_REST_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Ingress(Protocol):
    """A queue that is being listened to, as :class:`nagaya.jobs.sqs.SqsIngress`."""

    def start(self) -> None: ...
    async def close(self) -> None: ...


OpenIngress = Callable[[Queue], Awaitable[Ingress]]
"""Opens a queue. Raises what keeps it from being listened to: an absent queue or tenant, a region, a permission."""


class QueueWatch:
    """Keeps the queues open. One that cannot be listened to is tried again, now and then and when its tenant changes;
    with a change of its tenant it is opened anew, so that no right outlives a suspension or a new secret."""

    def __init__(self, queues: tuple[Queue, ...], open_ingress: OpenIngress, knows: Callable[[str], bool]) -> None:
        self._queues = queues
        self._open_ingress = open_ingress
        self._knows = knows
        self._changed: dict[str, list[asyncio.Event]] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def check(self) -> None:
        """Raise ``SettingsInvalid`` where a queue may ask for a kind of work that is not known here."""
        for queue in self._queues:
            for kind in queue.kinds:
                if not self._knows(kind):
                    raise SettingsInvalid(name="queues", problem=f"there is no kind of work called {kind[:64]!r}")

    def start(self) -> None:
        """Begin to listen. May be repeated. Raises as :meth:`check`."""
        self.check()
        if self._tasks:
            return
        for queue in self._queues:
            changed = asyncio.Event()
            if queue.tenant is not None:
                # A workspace's queue is opened anew with its tenant too: both must be open.
                for owner in {room_of(queue.tenant), queue.tenant.partition("/")[0]}:
                    self._changed.setdefault(owner, []).append(changed)
            self._tasks.append(asyncio.ensure_future(self._keep(queue, changed)))

    def tenant_changed(self, tenant_id: str | None) -> None:
        """Open the tenant's queues anew, and no other's; with None, every tenant's."""
        for owner, all_changed in self._changed.items():
            if tenant_id in (None, owner):
                for changed in all_changed:
                    changed.set()

    async def close(self) -> None:
        """Listen no longer. May be repeated."""
        tasks, self._tasks = self._tasks, []
        self._changed.clear()
        await ended(tasks)

    async def _keep(self, queue: Queue, changed: asyncio.Event) -> None:
        rest_s = REST_S
        while True:
            changed.clear()
            try:
                ingress = await self._open_ingress(queue)
            except MissingExtra as missing:
                _log.error("a queue is not listened to", action="queue.not_heard", queue=queue.url, reason=str(missing))
                return
            except Exception as failed:
                code = failed.code if isinstance(failed, NagayaError) else type(failed).__name__
                reason = str(failed) if isinstance(failed, NagayaError) else ""
                _log.error(
                    "a queue is not listened to", action="queue.not_heard", queue=queue.url, code=code, reason=reason
                )
                await _either(changed, rest_s)
                rest_s = min(2 * rest_s, LONGEST_REST_S)
                continue
            rest_s = REST_S
            _log.info("a queue is listened to", action="queue.heard", queue=queue.url, tenant=queue.tenant)
            try:
                ingress.start()
                await changed.wait()
            finally:
                await ingress.close()


async def _either(changed: asyncio.Event, rest_s: float) -> None:
    waiting = asyncio.ensure_future(changed.wait())
    await asyncio.wait([waiting], timeout=rest_s)
    waiting.cancel()


async def open_queue(nagaya: Nagaya, queue: Queue) -> Ingress:
    """A queue of the settings, as the tenant that owns it or, where several share it, as the platform. Raises
    ``NotFound`` and ``TenantNotOpen`` for its tenant, ``MissingExtra``, and what ``open_ingress`` raises."""
    try:
        from nagaya.jobs.sqs import open_ingress
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("nagaya"):
            raise
        raise MissingExtra(feature="sqs://", extra="aws") from missing

    async def find(address: str) -> Tenant:
        tenant = await nagaya.registry.tenant(room_of(address))
        if tenant.parent is not None:
            (await nagaya.registry.tenant(tenant.parent)).check_open(nagaya.clock.now_us())
        return tenant

    surroundings = nagaya.resources.surroundings(PLATFORM_ROOM)
    if queue.tenant is not None:
        tenant = await find(queue.tenant)
        tenant.check_open(nagaya.clock.now_us())
        surroundings = nagaya.resources.surroundings_of(tenant)
    return await open_ingress(
        queue.url,
        surroundings,
        nagaya.jobs,
        find,
        nagaya.jobs.signer,
        owner=queue.tenant,
        kinds=frozenset(queue.kinds),
    )
