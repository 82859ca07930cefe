"""Portable bundles: a tenant into a file, and a file into a new tenant."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from nagaya.audit.entry import chain_of
from nagaya.errors import BundleInTheWay, BundleNotBegun, BundleSignerUnknown, ConditionFailed, InvalidValue
from nagaya.keys.derivation import expand, extract, length_prefixed
from nagaya.lifecycle.bundle_entries import Trailer
from nagaya.lifecycle.bundle_export import BundleExport
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
from nagaya.lifecycle.tenants import OPERATOR
from nagaya.records.sealed_store import Partition, SealedStore
from nagaya.tenancy.tenant import Tenant
from nagaya.wiring.parts import TenantParts

if TYPE_CHECKING:
    from nagaya.wiring.platform import Nagaya

_SIGNING: Final = (Partition("signing", "bundle"), b"key")
_UNFINISHED: Final = Partition("bundle", "unfinished")


class Bundled(msgspec.Struct, kw_only=True):
    """What was exported or imported: how many of each kind, and how many records of which kind stayed behind."""

    bundle: str
    tenant: str
    signer: str
    counts: dict[str, int]
    left_out: dict[str, int]


class Bundles:
    """Exports and imports tenants. Files are read and written in threads."""

    def __init__(self, nagaya: Nagaya, platform: SealedStore) -> None:
        self._nagaya = nagaya
        self._platform = platform

    async def export(self, tenant_id: str, file: Path, recipient: BundleRecipient, *, actor: str = OPERATOR) -> Bundled:
        """Write everything of a tenant into a new file that only ``recipient`` opens.

        Others may work in the tenant meanwhile; then the file holds each record as it was when it was reached.
        Where it is interrupted, :meth:`resume` goes on. Raises ``BundleInTheWay``, ``BundleKeyRefused``.
        """
        tenant = await self._nagaya.tenants.show(tenant_id)
        signer = await self._signer()
        content_key = os.urandom(KEY_BYTES)
        header = BundleHeader(
            bundle=os.urandom(16).hex(),
            tenant=tenant.address,
            created_at_us=self._nagaya.clock.now_us(),
            signer=signer.public_key().public_bytes_raw(),
            commitment=commitment_of(content_key),
            lock=await asyncio.to_thread(locked, content_key, recipient),
        )
        raw = header_bytes(header)
        handle = await asyncio.to_thread(_made, file, raw)
        try:
            # Who goes on needs the key, and may be unable to unwrap it: it was wrapped for somebody else.
            await self._platform.put(_UNFINISHED, header.bundle.encode(), content_key)
            return await self._write(tenant, header, BundleExport(handle, content_key, raw, signer), actor)
        finally:
            await asyncio.to_thread(handle.close)

    async def resume(self, tenant_id: str, file: Path, *, actor: str = OPERATOR) -> Bundled:
        """Go on with an export that was interrupted, after the last whole frame of its file. Raises
        ``BundleNotBegun``."""
        tenant = await self._nagaya.tenants.show(tenant_id)
        signer = await self._signer()
        async with _opened(file, "r+b") as handle:
            header, raw = await asyncio.to_thread(read_header, handle)
            held = await self._platform.get(_UNFINISHED, header.bundle.encode())
            if held is None or header.tenant != tenant.address:
                raise BundleNotBegun(place=file, tenant=tenant_id)
            export = BundleExport(handle, held.body, raw, signer)
            await asyncio.to_thread(export.resume)
            return await self._write(tenant, header, export, actor)

    async def _write(self, tenant: Tenant, header: BundleHeader, export: BundleExport, actor: str) -> Bundled:
        parts = await TenantParts.open(self._nagaya, tenant)
        try:
            trailer = await export.run(parts, name=tenant.id, has_blobs=self._nagaya.resources.has_blobs(tenant))
        finally:
            await parts.close()
        held = await self._platform.get(_UNFINISHED, header.bundle.encode())
        if held is not None:
            await self._platform.delete(_UNFINISHED, header.bundle.encode(), expect=held.revision)
        self._note(tenant, actor, "tenant.export", header.bundle)
        return _bundled(header, tenant, trailer)

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

            token = expand(extract(content_key), length_prefixed("nagaya", "bundle", "onboarding"), KEY_BYTES)
            office = self._nagaya.tenants.by(actor)
            tenant = await office.finish(address, fill, token)
            if tenant is None:
                tenant = await office.create(address, name=name or address, fill=fill, token=token, **brought)
        self._note(tenant, actor, "tenant.import", header.bundle)
        return _bundled(header, tenant, found[-1])

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
    handle.write(header)
    handle.flush()
    return handle


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
