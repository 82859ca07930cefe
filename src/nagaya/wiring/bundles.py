"""Portable bundles: a tenant into a file, and a file into a new tenant."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nagaya.audit.entry import chain_of
from nagaya.connections.room import TenantSession
from nagaya.context.library.shelf import WORK
from nagaya.errors import (
    BundleBusy,
    BundleInTheWay,
    BundleNotBegun,
    BundleSignerUnknown,
    ConditionFailed,
    InvalidValue,
    KeyDestroyed,
    NotFound,
)
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.lifecycle.bundle_entries import BundleRoom, Trailer
from nagaya.lifecycle.bundle_export import BundleExport, ExportPoint, Told, export_begun
from nagaya.lifecycle.bundle_format import (
    KEY_BYTES,
    BundleHeader,
    BundleOpener,
    BundleRecipient,
    RecipientLock,
    check_whole,
    commitment_of,
    header_bytes,
    locked,
    read_header,
    unlocked,
)
from nagaya.lifecycle.bundle_import import BundleImport
from nagaya.lifecycle.bundle_unfinished import ExportKeys, UnfinishedExports
from nagaya.lifecycle.tenants import OPERATOR
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.tenancy.principal import Role, Scope
from nagaya.tenancy.tenant import Tenant
from nagaya.wiring.parts import TenantParts

if TYPE_CHECKING:
    from nagaya.wiring.platform import Nagaya

_SIGNING: Final = (Partition("signing", "bundle"), b"key")
KEPT_SETTINGS: Final = ("restore_days", "retention_days")
"""What says for how long records are kept, and so goes where they go."""


class Bundled(msgspec.Struct, kw_only=True):
    """What was exported or imported: how many of each kind, and how many records of which kind stayed behind."""

    bundle: str
    tenant: str
    signer: str
    counts: dict[str, int]
    left_out: dict[str, int]


class _Begun(NamedTuple):
    header: BundleHeader
    raw: bytes
    keys: ExportKeys


class Outgoing(NamedTuple):
    """A bundle on its way to a tenant's administrator: its id, where in the file its pieces begin, and the pieces."""

    bundle: str
    at: int
    pieces: AsyncGenerator[bytes, None]


class Bundles:
    """Exports and imports tenants. Files are read and written in threads."""

    def __init__(self, nagaya: Nagaya, platform: SealedStore) -> None:
        self._nagaya = nagaya
        self._unfinished = UnfinishedExports(platform, nagaya.clock)
        self._platform = platform

    async def export(self, tenant_id: str, file: Path, recipient: BundleRecipient, *, actor: str = OPERATOR) -> Bundled:
        """Write everything of a tenant into a new file that only ``recipient`` opens.

        Others may work in the tenant meanwhile; then the file holds each record as it was when it was reached.
        Where it is interrupted, :meth:`resume` goes on. Raises ``BundleInTheWay``, ``BundleKeyRefused``.
        """
        tenant = await self._nagaya.tenants.show(tenant_id)
        signer = await self._signer()
        begun = await self._begin(tenant, recipient, signer)
        handle = await asyncio.to_thread(_made, file, begun.raw)
        try:
            export = BundleExport(begun.keys.content, export_begun(begun.raw), signer)
            return await self._write(tenant, begun.header, export, handle, actor)
        finally:
            await asyncio.to_thread(handle.close)

    async def _begin(self, tenant: Tenant, recipient: BundleRecipient, signer: Ed25519PrivateKey) -> _Begun:
        keys = ExportKeys(os.urandom(KEY_BYTES), os.urandom(KEY_BYTES))
        header = BundleHeader(
            bundle=os.urandom(16).hex(),
            tenant=tenant.address,
            created_at_us=self._nagaya.clock.now_us(),
            signer=signer.public_key().public_bytes_raw(),
            commitment=commitment_of(keys.content),
            lock=await asyncio.to_thread(locked, keys.content, recipient),
        )
        # Who goes on needs the key, and may be unable to unwrap it: it was wrapped for somebody else.
        await self._unfinished.keep(header, keys, tenant.id)
        if await self._nagaya.registry.is_ending(tenant.id):
            # Its deletion may have removed such keys before these came.
            await self._unfinished.forget_all(tenant.id)
            raise KeyDestroyed
        return _Begun(header, header_bytes(header), keys)

    async def resume(self, tenant_id: str, file: Path, *, actor: str = OPERATOR) -> Bundled:
        """Go on with an export that was interrupted, after the last whole frame of its file. Raises
        ``BundleNotBegun``, and ``BundleBusy`` while another writes it."""
        tenant = await self._nagaya.tenants.show(tenant_id)
        signer = await self._signer()
        async with _opened(file, "r+b") as handle:
            _hold(handle, file)
            header, raw = await asyncio.to_thread(read_header, handle)
            keys = await self._unfinished.find(header.bundle, header.created_at_us)
            if keys is None or header.tenant != tenant.address:
                raise BundleNotBegun(place=file, tenant=tenant_id)
            export = BundleExport(keys.content, export_begun(raw), signer)
            await asyncio.to_thread(export.resume, handle)
            return await self._write(tenant, header, export, handle, actor)

    async def _write(
        self, tenant: Tenant, header: BundleHeader, export: BundleExport, handle: BinaryIO, actor: str
    ) -> Bundled:
        parts = await TenantParts.open(self._nagaya, tenant)
        try:
            async with aclosing(await self._pieces(tenant, parts, export)) as pieces:
                async for piece in pieces:
                    await asyncio.to_thread(handle.write, piece)
            await asyncio.to_thread(_settle, handle)
        finally:
            await parts.close()
        await self._unfinished.forget(header.bundle, header.created_at_us)
        self._note(tenant, actor, "tenant.export", header.bundle)
        assert export.trailer is not None
        return _bundled(header, tenant, export.trailer)

    async def _pieces(self, tenant: Tenant, room: BundleRoom, export: BundleExport) -> AsyncGenerator[bytes, None]:
        left_out: dict[str, int] = {}
        if tenant.parent is None and (workspaces := await self._nagaya.registry.workspaces(tenant.id)):
            # They let in whom they choose, and a bundle is for whoever has its tenant's.
            left_out["workspace"] = len(workspaces)
        told = Told(left_out, {name: getattr(tenant, name) for name in KEPT_SETTINGS})
        return export.pieces(room, told, name=tenant.id, has_blobs=self._nagaya.resources.has_blobs(tenant))

    async def send(self, session: TenantSession, recipient: BundleRecipient) -> Outgoing:
        """Everything in the room of the caller, its administrator, as a bundle that only ``recipient`` opens.

        Its pieces end with ``SessionClosed`` where the caller may no longer be there. Where they do not arrive,
        :meth:`send_on` goes on. Raises ``Forbidden``, ``BundleKeyRefused``.
        """
        tenant = _administered(session)
        signer = await self._signer()
        header, raw, keys = await self._begin(tenant, recipient, signer)
        self._note_by(session, "tenant.export.begin", header.bundle)
        return await self._sent(session, header.bundle, header.created_at_us, keys, export_begun(raw), signer, raw)

    async def send_on(self, session: TenantSession, mark: bytes) -> Outgoing:
        """What follows ``mark`` in a bundle that :meth:`send` began, of the room as it is now. May be repeated.

        Raises ``Forbidden``; ``NotFound`` for a mark of another tenant, an altered one, and one of a bundle that is
        whole or was begun more than seven days ago.
        """
        tenant = _administered(session)
        resumed = await self._unfinished.opened(mark)
        if resumed is None or resumed.room != tenant.id:
            raise NotFound("export")
        self._note_by(session, "tenant.export.resume", resumed.bundle)
        return await self._sent(
            session, resumed.bundle, resumed.created_at_us, resumed.keys, resumed.point, await self._signer()
        )

    async def _sent(
        self,
        session: TenantSession,
        bundle: str,
        created_at_us: int,
        keys: ExportKeys,
        point: ExportPoint,
        signer: Ed25519PrivateKey,
        header: bytes = b"",
    ) -> Outgoing:
        """The bundle from ``point`` on, with ``header`` before it."""
        tenant = session.tenant
        mark = partial(self._unfinished.mark, bundle, created_at_us, keys, tenant.id)
        export = BundleExport(keys.content, point, signer, mark)
        following = await self._pieces(tenant, session, export)

        async def pieces() -> AsyncGenerator[bytes, None]:
            if header:
                yield header
            async with aclosing(following) as frames:
                async for frame in frames:
                    yield frame
            # It stays for a while: the end may not have arrived.
            self._note_by(session, "tenant.export", bundle)

        return Outgoing(bundle, point.at - len(header), pieces())

    def _note_by(self, session: TenantSession, action: str, target: str) -> None:
        principal = session.entrance.principal
        chain = chain_of(session.tenant)
        self._nagaya.audit.record(
            chain, actor=principal.user_id, role=principal.role.value, action=action, target=target
        )

    async def import_(
        self,
        file: Path,
        opener: BundleOpener,
        *,
        tenant_id: str | None = None,
        signer: str | None = None,
        name: str | None = None,
        actor: str = OPERATOR,
        **brought: Any,
    ) -> Bundled:
        """Make a tenant from a bundle: ``tenant_id``, or the id it was exported under. It opens once everything has
        arrived and was compared; where that fails, nothing of it is left. ``brought`` as for ``TenantOffice.create``.

        May be repeated where the process ended: what has arrived is not written again. Raises ``BundleBroken``,
        ``BundleKeyRefused``, ``TenantExists``; ``BundleSignerUnknown`` where the signer is not ``signer`` (64 hex
        digits), and for a bundle that anybody could have locked, where it is neither named nor this platform.
        """
        async with _opened(file, "rb") as handle:
            header, _ = await asyncio.to_thread(check_whole, handle)
            await self._check_signer(header, signer)
            content_key = await asyncio.to_thread(unlocked, header, opener)
            address = tenant_id or header.tenant
            found: list[Trailer] = []

            async def fill(tenant: Tenant) -> None:
                parts = await TenantParts.open(self._nagaya, tenant)
                try:
                    found.append(await BundleImport(handle, content_key).run(parts))
                finally:
                    await parts.close()
                settings = {name: value for name, value in found[-1].settings.items() if name in KEPT_SETTINGS}
                await self._nagaya.registry.change_tenant(tenant.id, settings)
                if WORK.collection in found[-1].kinds:
                    # What was being indexed goes on here, though nobody of the tenant asks for it.
                    await self._nagaya.unfinished.of(tenant.id).note()

            token = expand(extract(content_key), length_prefixed("nagaya", "bundle", "onboarding"), KEY_BYTES)
            office = self._nagaya.tenants.by(actor)
            tenant = await office.finish(address, fill, token)
            if tenant is None:
                tenant = await office.create(address, name=name or address, fill=fill, token=token, **brought)
        self._note(tenant, actor, "tenant.import", header.bundle)
        return _bundled(header, tenant, found[-1])

    async def forget(self, room: str) -> None:
        """Keep nothing that would open a bundle of a room that is deleted. May be repeated."""
        await self._unfinished.forget_all(room)

    async def _check_signer(self, header: BundleHeader, named: str | None) -> None:
        signer = header.signer.hex()
        if named is None:
            if not isinstance(header.lock, RecipientLock):
                return
            named = (await self._signer()).public_key().public_bytes_raw().hex()
        if signer != named.strip().lower():
            raise BundleSignerUnknown(signer=signer)

    async def _signer(self) -> Ed25519PrivateKey:
        """The key that this platform's bundles are signed with, made when first needed."""
        held = await self._platform.get(*_SIGNING)
        if held is None:
            with suppress(ConditionFailed):
                await self._platform.put(*_SIGNING, os.urandom(KEY_BYTES))
            held = await self._platform.get(*_SIGNING)
            assert held is not None
        return Ed25519PrivateKey.from_private_bytes(held.body)

    def _note(self, tenant: Tenant, actor: str, action: str, target: str) -> None:
        self._nagaya.audit.record(chain_of(tenant), actor=actor, role=OPERATOR, action=action, target=target)


def _administered(session: TenantSession) -> Tenant:
    """The tenant whose administrator the caller is, with leave to read everything; else ``Forbidden``."""
    session.entrance.require(Scope.READ)
    session.entrance.require(Scope.ADMIN, Role.TENANT_ADMIN)
    return session.tenant


def _settle(handle: BinaryIO) -> None:
    handle.flush()
    os.fsync(handle.fileno())


def _bundled(header: BundleHeader, tenant: Tenant, trailer: Trailer) -> Bundled:
    counts = {kind: tally.count for kind, tally in sorted(trailer.kinds.items())}
    return Bundled(
        bundle=header.bundle,
        tenant=tenant.address,
        signer=header.signer.hex(),
        counts=counts,
        left_out=trailer.left_out,
    )


def _made(file: Path, header: bytes) -> BinaryIO:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise BundleInTheWay(place=file) from None
    except OSError as failed:
        raise _unusable(file, failed) from None
    handle = os.fdopen(descriptor, "r+b")
    try:
        _hold(handle, file)
        handle.write(header)
        handle.flush()
    except BaseException:
        handle.close()
        raise
    return handle


def _hold(handle: BinaryIO, file: Path) -> None:
    """Keep others from writing to the file until it is closed, however that comes; where its file system knows no locks
    nobody is kept from it. Raises ``BundleBusy``."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BundleBusy(place=file) from None
    except OSError:
        return


@asynccontextmanager
async def _opened(file: Path, mode: str) -> AsyncIterator[BinaryIO]:
    try:
        handle = cast("BinaryIO", await asyncio.to_thread(open, file, mode))
    except OSError as failed:
        raise _unusable(file, failed) from None
    try:
        yield handle
    finally:
        await asyncio.to_thread(handle.close)


def _unusable(file: Path, failed: OSError) -> InvalidValue:
    return InvalidValue(param="file", at=str(file), detail=failed.strerror or type(failed).__name__)
