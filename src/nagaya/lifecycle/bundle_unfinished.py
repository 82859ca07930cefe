"""Exports that are under way: their keys, kept for seven days, and the marks by which they go on anywhere."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.errors import ConditionFailed
from nagaya.kernel.clock import Clock
from nagaya.lifecycle.bundle_export import ExportPoint, export_after
from nagaya.lifecycle.bundle_format import KEY_BYTES, BundleHeader
from nagaya.records.sealed_store import Partition, Record, SealedStore

_PLACE: Final = Partition("bundle", "unfinished")
_KEPT_US: Final = 7 * 86_400 * 1_000_000
_ID_BYTES: Final = 16
_TIME_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_PAGE: Final = 100
_NAMED_BYTES: Final = _TIME_BYTES + _ID_BYTES


class ExportKeys(NamedTuple):
    """What seals a bundle, and what seals its marks: who can open the bundle must not be able to make one."""

    content: bytes
    marks: bytes


class Resumed(NamedTuple):
    """An export that goes on: of which room, and where."""

    bundle: str
    created_at_us: int
    keys: ExportKeys
    room: str
    point: ExportPoint


class _Mark(msgspec.Struct, array_like=True):
    room: str
    point: ExportPoint


class UnfinishedExports:
    """The keys of exports that may go on, as records of the platform's room."""

    def __init__(self, platform: SealedStore, clock: Clock) -> None:
        self._platform = platform
        self._clock = clock

    async def keep(self, header: BundleHeader, keys: ExportKeys, room: str) -> None:
        """Keep the keys of a room's bundle; those that were kept for seven days go."""
        before = _sort(self._clock.now_us() - _KEPT_US, "")
        for row in await self._platform.query(_PLACE, before=before, limit=_PAGE):
            await self._remove(row)
        body = keys.content + keys.marks + room.encode()
        await self._platform.put(_PLACE, _sort(header.created_at_us, header.bundle), body)

    async def forget_all(self, room: str) -> None:
        """Remove the keys of every bundle of a room, which would open it after its own are destroyed; and those that
        were kept for seven days. May be repeated."""
        ended, after = _sort(self._clock.now_us() - _KEPT_US, ""), b""
        while rows := await self._platform.query(_PLACE, after=after, limit=_PAGE):
            for row in rows:
                if row.sort < ended or row.body[2 * KEY_BYTES :] == room.encode():
                    await self._remove(row)
            after = rows[-1].sort

    async def _remove(self, row: Record) -> None:
        with suppress(ConditionFailed):
            await self._platform.delete(_PLACE, row.sort, expect=row.revision)

    async def find(self, bundle: str, created_at_us: int) -> ExportKeys | None:
        """The keys of a bundle that may go on; else None."""
        if self._clock.now_us() - created_at_us > _KEPT_US:
            return None
        held = await self._platform.get(_PLACE, _sort(created_at_us, bundle))
        return None if held is None else ExportKeys(held.body[:KEY_BYTES], held.body[KEY_BYTES : 2 * KEY_BYTES])

    async def forget(self, bundle: str, created_at_us: int) -> None:
        """The bundle is whole."""
        sort = _sort(created_at_us, bundle)
        held = await self._platform.get(_PLACE, sort)
        if held is not None:
            await self._remove(held)

    @staticmethod
    def mark(bundle: str, created_at_us: int, keys: ExportKeys, room: str, point: ExportPoint) -> bytes:
        """A mark of ``point``: which bundle's in clear, all else sealed."""
        named = created_at_us.to_bytes(_TIME_BYTES, "big") + bytes.fromhex(bundle)
        nonce = os.urandom(_NONCE_BYTES)
        return named + nonce + AESGCM(keys.marks).encrypt(nonce, msgspec.msgpack.encode(_Mark(room, point)), named)

    async def opened(self, mark: bytes) -> Resumed | None:
        """What a mark says; None for any that this platform did not make, or whose bundle may not go on."""
        named, nonce = mark[:_NAMED_BYTES], mark[_NAMED_BYTES : _NAMED_BYTES + _NONCE_BYTES]
        if len(nonce) < _NONCE_BYTES:
            return None
        created_at_us = int.from_bytes(named[:_TIME_BYTES], "big")
        bundle = named[_TIME_BYTES:].hex()
        keys = await self.find(bundle, created_at_us)
        if keys is None:
            return None
        try:
            body = AESGCM(keys.marks).decrypt(nonce, mark[_NAMED_BYTES + _NONCE_BYTES :], named)
        except InvalidTag:
            return None
        said = msgspec.msgpack.decode(body, type=_Mark)
        return Resumed(bundle, created_at_us, keys, said.room, export_after(said.point, mark))


def _sort(created_at_us: int, bundle: str) -> bytes:
    return created_at_us.to_bytes(_TIME_BYTES, "big") + bundle.encode()
