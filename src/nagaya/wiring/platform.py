"""The platform: everything opened, put together, looked after and closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

import msgspec
import structlog

from nagaya.audit.entry import PLATFORM, Chain, Outcome
from nagaya.audit.log import AuditLog
from nagaya.connections.decoded import DecodedLimit
from nagaya.connections.room import RoomParts, Rooms, TenantSession
from nagaya.context.library.indexing import LIBRARY_INDEX, index_room
from nagaya.context.sweeping import TENANT_SWEEP, sweep
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import (
    CacheUnreachable,
    Forbidden,
    InvalidValue,
    KeyDestroyed,
    KeyDisabled,
    MissingExtra,
    NagayaError,
    NotFound,
    RateLimited,
    RegistryUnreachable,
    SealBroken,
    SettingsInvalid,
    StoreDamaged,
    StoreFull,
    StoreReadOnly,
    TenantExists,
    TenantMismatch,
    TokenRefused,
)
from nagaya.extraction.extractor import Extractor
from nagaya.gate.enter import NOTHING_NAMED, Ask, Gate
from nagaya.identity.authenticator import Authenticator
from nagaya.identity.binding_rules import check_binding
from nagaya.identity.jwks import KeyCache
from nagaya.identity.key_client import key_client
from nagaya.identity.local import LocalIssuer
from nagaya.identity.sign_in import SignIn
from nagaya.indexes.open_index import IndexMemory
from nagaya.jobs.driver import JobState
from nagaya.jobs.opening import open_jobs
from nagaya.jobs.record import JobRecord, VerifiedJob
from nagaya.kernel.clock import Clock, SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.kernel.ended import ended
from nagaya.kernel.telemetry import set_up_logging
from nagaya.keys.keyring import Keyring, new_version
from nagaya.keys.local import LocalKeyService
from nagaya.lifecycle.job_kinds import KEY_RESEAL, register_jobs
from nagaya.lifecycle.reseal import reseal_all
from nagaya.lifecycle.tenants import OPERATOR, TenantOffice
from nagaya.lifecycle.workspaces import Workspaces
from nagaya.models.address import check_model_address, parse_model_address
from nagaya.records.opened import OpenedRecords
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.records.sealer import Sealer
from nagaya.records.values import PartitionValues
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.secrets.vault import LLM_CONNECTION, Vault
from nagaya.settings import Settings, check_settings, load_settings, without_references
from nagaya.stores.sqlite import SqliteHouse
from nagaya.tenancy.bindings import IssuerBinding
from nagaya.tenancy.names import check_address, room_of
from nagaya.tenancy.principal import Entrance, Principal
from nagaya.tenancy.registry import SqlRegistry
from nagaya.tenancy.tenant import OPEN_STATES, Tenant, TenantState
from nagaya.usage.meter import Meter, Metric
from nagaya.usage.open_streams import OpenStreams
from nagaya.wiring import connections
from nagaya.wiring.bundles import Bundles
from nagaya.wiring.parts import TenantParts
from nagaya.wiring.queues import QueueWatch, open_queue
from nagaya.wiring.resources import PLATFORM_ROOM, Resources, without_credentials
from nagaya.wiring.shared import open_shared
from nagaya.wiring.unfinished import UnfinishedRooms

_log = structlog.get_logger(__name__)

_KEY_WATCH_S: Final = 5.0
"""A key is fetched anew past 20 s: asked for so often, one that was disabled is known within its 30 s."""

_SWEEP_S: Final = 900.0
_TAKE_UP_S: Final = 10.0
_DAY_US: Final = 86_400 * 1_000_000
_MAINTENANCE_S: Final = 15.0
"""Less than the 30 s for which a key of an older version stays in memory, so that its use is not missed."""


class AdmissionCount(Protocol):
    """What is told of admitted requests; the server puts its metrics here."""

    def admitted(self, tenant_id: str) -> None: ...
    def page(self) -> bytes: ...


class _NotCounted:
    """Without a server nobody scrapes."""

    def admitted(self, tenant_id: str) -> None: ...

    def page(self) -> bytes:
        return b""


class _SigningKeys:
    """The local issuer's ring as a record of the platform's room."""

    def __init__(self, records: SealedStore) -> None:
        self._records = records
        self._place = Partition("signing", "local"), b"ring"

    async def load(self) -> tuple[bytes, int] | None:
        record = await self._records.get(*self._place)
        return None if record is None else (record.body, record.revision)

    async def save(self, content: bytes, *, expect: int) -> None:
        await self._records.put(*self._place, content, expect=expect)


class Nagaya:
    """The platform over one data folder. ``async with Nagaya.open("data/") as nagaya: …``

    Several processes may open the same folder. To be used in one event loop.
    """

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        if not structlog.is_configured():
            # A library must not write lines of its own between the program's on standard output.
            set_up_logging("warning", "text")
        check_settings(settings)
        self.settings = settings = without_references(settings)
        self.clock = clock or SystemClock()
        self.egress = EgressPolicy(settings.allowed_hosts)
        self.opened = OpenedRecords()
        self.index_memory = IndexMemory()
        self.decoded_limit = DecodedLimit()
        self.ready = False
        self.metrics: AdmissionCount = _NotCounted()
        self._closing = AsyncExitStack()
        self._work: set[asyncio.Task[None]] = set()

    @classmethod
    def open(
        cls, data: str | Path | None = None, *, config: str | None = None, settings: Settings | None = None
    ) -> Nagaya:
        """The platform over ``data`` or as ``config`` says; enter it with ``async with``."""
        if settings is None:
            settings = load_settings(config=config, flags={"data": str(data) if data is not None else None})
        return cls(settings)

    async def __aenter__(self) -> Nagaya:
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self, *, deadline_s: float = 5.0) -> None:
        """Close what was opened, in reverse. Answers in the making get ``deadline_s`` seconds to end."""
        self.ready = False
        if hasattr(self, "queues"):
            await self.queues.close()
        if hasattr(self, "jobs"):
            await self.jobs.close(deadline_s=deadline_s)
        if hasattr(self, "rooms"):
            await self.rooms.close(deadline_s=deadline_s)
        await self._closing.aclose()

    async def _start(self) -> None:
        settings, clock, closing = self.settings, self.clock, self._closing
        folder = settings.folder
        await asyncio.to_thread(_make_folder, folder)
        # A folder that held tenants never gets a new registry: that would be an empty one over their stores.
        fresh = not (folder / "registry.db").exists() and not (folder / "tenants").exists()
        self.local_keys = await LocalKeyService.open(folder / "keys", settings.root_key, create=fresh)
        closing.push_async_callback(self.local_keys.close)
        if settings.registry is None:
            self.registry = SqlRegistry.in_file(folder / "registry.db", clock, create=fresh)
        else:
            self.registry = SqlRegistry(settings.registry, clock)
        closing.push_async_callback(self.registry.close)
        await self.registry.start()
        self.house = SqliteHouse(folder / "tenants", max_open=settings.open_stores)
        closing.push_async_callback(self.house.close)
        self.resources = Resources(
            settings, clock, self.egress, self.house, self.local_keys, self._connection_secret, self._forget
        )
        closing.push_async_callback(self.resources.close)
        self.extractor = Extractor()
        closing.push_async_callback(self.extractor.close)
        self.keys = await self.resources.platform_keys()
        platform = self._platform = await self._open_platform()
        self.unfinished = UnfinishedRooms(platform, clock)
        self.audit = AuditLog(platform, clock)
        self.audit.start()
        closing.push_async_callback(self.audit.close)
        self.meter = Meter(self.registry, clock)
        self.meter.start()
        self.open_streams = OpenStreams(settings.streams_per_tenant)
        closing.push_async_callback(self.meter.close)
        client = key_client(self.egress)
        closing.push_async_callback(client.aclose)
        jwks = KeyCache(client, clock, ttl_s=settings.jwks_ttl_s, allowed_hosts=settings.allowed_hosts)
        closing.push_async_callback(jwks.close)
        self.issuer = LocalIssuer(_SigningKeys(platform), clock, issuer=settings.local_issuer)
        self.authenticator = Authenticator(self.registry, jwks, self.issuer, clock, settings)
        surroundings = self.resources.surroundings(PLATFORM_ROOM)
        shared = self.shared = open_shared(surroundings, self.registry, platform, self._platform_sealer, closing)
        self.sign_in = SignIn(shared.sessions, self.registry, self.issuer, self.authenticator, clock)
        self.gate = Gate(
            self.authenticator,
            self.registry,
            clock,
            check_quota=shared.check_quota,
            check_risk=_no_risk,
            on_refusal=self._refused,
        )
        self.rooms = Rooms(self._open_room, clock, self.gate.is_current, max_open=settings.open_stores)
        self.tenants = TenantOffice(
            self.registry,
            self.resources,
            self.issuer,
            self.audit,
            self.meter,
            clock,
            self._check_model,
            self._check_issuer,
            default_store=without_credentials(settings.default_store),
        )
        self.workspaces = Workspaces(self.registry, self.tenants, self.audit, clock)
        self.bundles = Bundles(self, platform)
        self.jobs = await open_jobs(settings, platform, clock, self._job_session, on_end=self._job_ended)
        closing.push_async_callback(self.jobs.close)
        register_jobs(self.jobs)
        self.jobs.register(TENANT_SWEEP, sweep)
        self.jobs.register(LIBRARY_INDEX, lambda job: index_room(job.session, self.meter))
        self.queues = QueueWatch(settings.queues, lambda queue: open_queue(self, queue), self.jobs.knows)
        closing.push_async_callback(self.queues.close)
        self.registry.on_change(self._changed)
        self.registry.on_member_change(self.gate.member_changed)
        self._spawn(self._maintain())
        self._spawn(self._sweep())
        self._spawn(self._take_up())
        self._spawn(self._watch_keys())
        closing.push_async_callback(self._stop_work)
        self.ready = True

    async def start_work(self) -> None:
        """Begin to run background work here, and to listen to the queues of the settings, until ``close``. A program's
        own kinds of work are registered before. May be repeated. Raises ``SettingsInvalid``."""
        self.queues.start()
        await self.jobs.start()

    # --- the doors ---

    async def enter(self, token: str, ask: Ask = NOTHING_NAMED) -> Entrance:
        """Turn a token or API key into an entrance. See :meth:`nagaya.gate.enter.Gate.enter`."""
        return await self.gate.enter(token, ask)

    def session(self, entrance: Entrance) -> _Inside:
        """``async with nagaya.session(entrance) as tenant``: the caller inside its tenant."""
        return _Inside(self, entrance)

    async def inside(self, entrance: Entrance) -> TenantContext:
        """The caller inside its tenant; close it when done. Counts one API call."""
        session = self.rooms.held(entrance) or await self.rooms.session(entrance)
        self.meter.count(entrance.tenant, Metric.API_CALLS)
        return TenantContext(session, self.meter)

    # --- what is opened ---

    async def _open_platform(self) -> SealedStore:
        if not await self.registry.key_versions(PLATFORM_ROOM):
            try:
                version = await new_version(self.keys, PLATFORM_ROOM, 1, clock=self.clock)
                await self.registry.add_key_version(PLATFORM_ROOM, version)
            except NagayaError:
                # Another process on the same new folder was first; its version is as good.
                if not await self.registry.key_versions(PLATFORM_ROOM):
                    raise
        house = await self.resources.platform_house()
        try:
            store = await self.resources.open_store(house, PLATFORM_ROOM)
        except StoreDamaged:
            # None there yet. One that is there but damaged makes this raise anew.
            with contextlib.suppress(TenantExists):
                await house.create(PLATFORM_ROOM)
            store = await self.resources.open_store(house, PLATFORM_ROOM)
        keyring = Keyring(PLATFORM_ROOM, self.keys, self.registry, self.clock, self.settings.key_cache_s)
        self._closing.push_async_callback(keyring.close)
        self._closing.push_async_callback(store.close)
        self._platform_sealer = Sealer(PLATFORM_ROOM, keyring)
        try:
            await keyring.active()
        except (NotFound, SealBroken) as foreign:
            problem = (
                "it does not open the platform's own key, which another key service wrapped; all servers on one "
                "registry use one, and local:// only on one folder"
            )
            raise SettingsInvalid(name="platform_keys", problem=problem) from foreign
        return SealedStore(store, self._platform_sealer)

    async def _open_room(self, tenant: Tenant) -> TenantParts:
        return await TenantParts.open(self, tenant)

    async def connections(self, room: str) -> Vault:
        """A room's connection secrets, such as ``aws-connection``: they open the tenant's store, so they lie in the
        platform's own, or in the platform's account at a cloud."""
        if self.settings.secrets is not None:
            return Vault(await self.resources.secrets_of(room, self.settings.secrets))
        return Vault(EmbeddedSecrets(PartitionValues(self._platform, Partition("connection", room))))

    async def _connection_secret(self, room: str, name: str) -> bytes | None:
        if room == PLATFORM_ROOM:
            # The platform's own account is reached by what the process was given: environment, instance role.
            return None
        return await (await self.connections(room)).get(name)

    async def _forget(self, room: str) -> None:
        await connections.forget_connections(await self.connections(room))
        await self.shared.sessions.forget(room)
        await self.bundles.forget(room)
        with contextlib.suppress(CacheUnreachable):
            # What is left there ends by itself, and its key is gone.
            await self.shared.forget(room)

    async def external_id(self, tenant_id: str) -> str:
        """The ExternalId for the trust policy of a tenant's AWS role, also before the tenant is made. Repeatable."""
        return await connections.external_id(await self.connections(_checked_room(tenant_id)))

    async def set_connection(self, tenant_id: str, name: str, value: bytes, *, actor: str = OPERATOR) -> None:
        """Keep a connection secret of a tenant, also before the tenant is made. Nothing reads it back out."""
        room = _checked_room(tenant_id)
        await connections.set_connection(await self.connections(room), name, value)
        self._note(room, actor, "connection.set", name)
        await self._touch_all(room)

    async def connection_names(self, tenant_id: str) -> Sequence[str]:
        """Which connection secrets of a tenant are set."""
        return await connections.connection_names(await self.connections(_checked_room(tenant_id)))

    async def delete_connection(self, tenant_id: str, name: str, *, actor: str = OPERATOR) -> None:
        """Forget a connection secret. One that is not set is no error."""
        room = _checked_room(tenant_id)
        connections.check_name(name)
        await (await self.connections(room)).delete(name)
        self._note(room, actor, "connection.delete", name)
        await self._touch_all(room)

    async def _touch_all(self, room: str) -> None:
        """Let every server open the room anew, with the new secret, and those of its workspaces, which may use it."""
        with contextlib.suppress(NotFound):
            await self.registry.touch(room)
            for workspace in await self.registry.workspaces(room):
                await self.registry.touch(workspace.id)

    def _note(self, tenant_id: str, actor: str, action: str, target: str) -> None:
        self.audit.record(Chain(tenant_id), actor=actor, role=OPERATOR, action=action, target=target)

    async def set_model_key(
        self, tenant_id: str, api_key: str, *, host: str | None = None, actor: str = OPERATOR
    ) -> None:
        """Keep the key of the tenant's model account in the tenant's own vault. Nothing reads it back out.

        A key belongs to one host and is sent to no other. ``host`` (``HOST`` or ``HOST:PORT``) may be left out where
        the tenant's models lie at one. Raises ``InvalidValue``.
        """
        tenant = await self.registry.tenant(room_of(tenant_id))
        addresses = [parse_model_address(url) for url in tenant.models]
        accounts = sorted({address.account for address in addresses if address.kind != "builtin"})
        chosen = [account for account in accounts if host in (None, account, account.rpartition(":")[0])]
        if len(chosen) != 1:
            detail = f"say for which host: {', '.join(accounts)}" if accounts else "set the tenant's models first"
            raise InvalidValue(param="model_key", at="model_key", detail=detail)
        parts = await self._open_room(tenant)
        try:
            await parts.secrets.change(LLM_CONNECTION, lambda before: _with_key(before, chosen[0], api_key))
        finally:
            await parts.close()
        self._note(tenant.id, actor, "model_key.set", chosen[0])
        # The epoch makes every server open the room, and with it the model's client, anew.
        await self.registry.touch(tenant.id)

    def _check_model(self, url: str, regions: Sequence[str]) -> None:
        address = parse_model_address(url)
        check_model_address(address, self.egress, regions)
        if address.kind == "builtin":
            # It runs in this process: said when the tenant is made, not when it first asks.
            self.resources.check_region_here(regions)

    def _check_issuer(self, binding: IssuerBinding) -> None:
        check_binding(binding, is_ours=lambda issuer: self.issuer.tenant_of(issuer) is not None, egress=self.egress)

    # --- what happens ---

    def _changed(self, tenant_id: str | None, kind: str) -> None:
        self.authenticator.on_registry_change(tenant_id, kind)
        if tenant_id is None:
            if kind == "all":
                self.queues.tenant_changed(None)
                for open_room in self.rooms.open_tenants():
                    self.rooms.drop_keys(open_room)
                    self._spawn(self._look_again(open_room))
                self.gate.members_changed()
            return
        if kind == "members":
            return
        if kind in ("tenant", "deleted"):
            self.queues.tenant_changed(tenant_id)
        # A workspace's key opens only while its tenant's does.
        for concerned in (tenant_id, *self.rooms.open_workspaces(tenant_id)):
            self.rooms.drop_keys(concerned)
            if kind in ("tenant", "deleted"):
                self._spawn(self._look_again(concerned))

    async def _look_again(self, tenant_id: str) -> None:
        await self.gate.look_again(tenant_id)
        try:
            tenant = await self.registry.tenant(tenant_id)
            tenant.check_open(self.clock.now_us())
            if tenant.parent is not None:
                (await self.registry.tenant(tenant.parent)).check_open(self.clock.now_us())
        except RegistryUnreachable:
            return
        except NagayaError:
            # Gone, or shut: nothing of it stays open here, its own credentials least of all.
            await self.rooms.shut(tenant_id)
            return
        parts = self.rooms.parts(tenant_id)
        if parts is not None:
            await self._check_key(tenant_id, parts)
        await self.rooms.retire(tenant_id, epoch=tenant.epoch)

    async def _watch_keys(self) -> None:
        """Ask for the keys of tenants in whose rooms somebody is: an owner who disables a key in his key service tells
        nobody, and an open stream would not ask before its end."""
        asked: set[str] = set()

        async def ask(tenant_id: str, parts: RoomParts) -> None:
            try:
                await self._check_key(tenant_id, parts)
            finally:
                asked.discard(tenant_id)

        while True:
            await asyncio.sleep(_KEY_WATCH_S)
            for tenant_id, parts in self.rooms.in_use():
                if tenant_id not in asked:
                    asked.add(tenant_id)
                    self._spawn(ask(tenant_id, parts))

    async def _check_key(self, tenant_id: str, parts: RoomParts) -> None:
        try:
            await parts.check_key()
        except (KeyDisabled, KeyDestroyed):
            # A stream that is open needs no key until its end: without this it would outlive the key.
            self.gate.void(tenant_id)
        except NagayaError as unknown:
            # The key service is away: nothing was revoked, and what needs the key says so itself.
            _log.warning("key not checked", action="key.check_failed", code=unknown.code)

    def _refused(self, principal: Principal | None, refused: NagayaError) -> None:
        reason = refused.reason if isinstance(refused, TokenRefused) else refused.code
        chain: Chain = PLATFORM
        if principal is not None and principal.tenant_id is not None:
            chain = Chain(principal.tenant_id)
        elif not isinstance(refused, Forbidden | TenantMismatch | RateLimited):
            # A stranger's refusals are counted, not chained: anybody can make as many as they like.
            _log.info("refused", action="gate.refused", code=refused.code, reason=reason)
            return
        self.audit.record(
            chain,
            actor=principal.user_id if principal else "",
            role=principal.role.value if principal else "",
            action="enter",
            outcome="refused",
            reason=reason,
        )

    @contextlib.asynccontextmanager
    async def _job_session(self, job: VerifiedJob) -> AsyncIterator[TenantSession]:
        session = await self.rooms.session(await self.gate.enter_for_job(job))
        try:
            yield session
        finally:
            await session.release()

    def _job_ended(self, record: JobRecord | None, state: JobState, code: str) -> None:
        outcome: Outcome = "failed" if state is JobState.FAILED else "done"
        if state is JobState.REFUSED:
            outcome = "refused"
        self.audit.record(
            # A record that is not genuine says nothing about anybody's tenant.
            PLATFORM if record is None else Chain(record.tenant_id),
            actor="platform",
            role="job",
            action="job.run" if state is not JobState.CANCELLED else "job.cancel",
            target="" if record is None else f"{record.kind} {record.id}",
            outcome=outcome,
            reason=code,
        )

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(_MAINTENANCE_S)
            await self.rooms.keep_up(self._tend)

    async def _sweep(self) -> None:
        """Every day have every tenant's room looked through for what has come to its end, whichever server is first."""
        swept = -1
        while True:
            await asyncio.sleep(_SWEEP_S)
            today = self.clock.now_us() // _DAY_US
            if self.jobs.is_started and swept != today:
                try:
                    await self.sweep_tenants()
                    swept = today
                except NagayaError as failed:
                    _log.warning("the daily sweep failed", action="tenants.sweep_failed", code=failed.code)

    async def sweep_tenants(self) -> None:
        """Have today's sweep of every open tenant and workspace done in the background. May be repeated."""
        day = self.clock.now_us() // _DAY_US
        after = ""
        while tenants := await self.registry.tenants(after=after, limit=100):
            for tenant in tenants:
                for each in (tenant, *await self.registry.workspaces(tenant.id)):
                    if each.state in OPEN_STATES:
                        await self.jobs.enqueue(each, TENANT_SWEEP, dedup=f"day {day}")
            after = tenants[-1].id

    async def _take_up(self) -> None:
        """Have work done that nobody does any more: what a server that died left, and what whoever asked last may not
        do."""
        while True:
            await asyncio.sleep(_TAKE_UP_S)
            if not self.jobs.is_started:
                continue
            try:
                await self.take_up_work()
            except MissingExtra as missing:
                _log.warning("work left is not taken up here", action="unfinished.not_taken_up", reason=str(missing))
                return
            except NagayaError as failed:
                _log.warning("work left was not taken up", action="unfinished.failed", code=failed.code)

    async def take_up_work(self) -> None:
        """Have the indexing that was left off in any room, and is not going on here, done in the background, by
        whichever server is first. May be repeated."""
        for room, occasion in await self.unfinished.due():
            if self.rooms.is_indexing(room):
                continue
            try:
                tenant = await self.registry.tenant(room)
            except NotFound:
                tenant = None
            if tenant is None or tenant.state is TenantState.DELETED:
                note = self.unfinished.of(room)
                await note.done(await note.noted())
            elif tenant.state in OPEN_STATES:
                await self.jobs.enqueue(tenant, LIBRARY_INDEX, dedup=occasion)

    async def _tend(self, tenant: Tenant, parts: RoomParts) -> None:
        """Rotate a key that has sealed half of what it may, and seal anew what older versions sealed."""
        try:
            if parts.needs_rotation:
                await self.tenants.by("platform").rotate_key(tenant.address)
            if parts.reads_older and self.jobs.is_started:
                # One sweep an hour, however many servers read older records.
                hour = self.clock.now_us() // 3_600_000_000
                await self.jobs.enqueue(tenant, KEY_RESEAL, dedup=f"hour {hour}")
            elif parts.reads_older:
                resealed = await reseal_all(parts.records)
                _log.info("records sealed anew", action="key.resealed", tenant=tenant.id, records=resealed)
        except NagayaError as failed:
            _log.warning("upkeep failed", action="room.upkeep_failed", tenant=tenant.id, code=failed.code)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _stop_work(self) -> None:
        await ended(self._work)


class _Inside:
    """What ``Nagaya.session`` gives: entered, it is the caller inside its tenant."""

    def __init__(self, nagaya: Nagaya, entrance: Entrance) -> None:
        self._nagaya = nagaya
        self._entrance = entrance
        self._context: TenantContext | None = None

    async def __aenter__(self) -> TenantContext:
        self._context = await self._nagaya.inside(self._entrance)
        return self._context

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is not None:
            await self._context.close()


def _with_key(before: bytes | None, account: str, api_key: str) -> bytes:
    """The keys of a tenant's model accounts, with this one."""
    keys = {} if before is None else msgspec.json.decode(before, type=dict[str, str])
    return msgspec.json.encode({**keys, account: api_key})


def _checked_room(address: str) -> str:
    check_address(address)
    return room_of(address)


def _no_risk(entrance: Entrance, ask: Ask) -> None:
    """No risk policy yet: every admitted request passes."""


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as failed:
        raise StoreFull() if failed.errno == 28 else StoreReadOnly() from failed
