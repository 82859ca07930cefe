"""Key services for tests, and the contract that every key service keeps."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from nagaya.errors import KeyDestroyed, KeyDisabled, KeyUnreachable, NotFound, SealBroken
from nagaya.keys.driver import KEY_BYTES, KeyContext, KeyControl, KeyDriver
from nagaya.keys.keyring import new_version
from nagaya.keys.versions import KeyVersion, KeyVersionState


class MemoryKeys:
    """A key service in memory. ``reachable`` off makes it fail, ``gate`` holds its answers back, ``calls`` counts."""

    def __init__(self) -> None:
        self.reachable = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self._ciphers: dict[str, AESGCM] = {}
        self._disabled: set[str] = set()
        self._destroyed: set[str] = set()

    async def generate(self, context: KeyContext) -> tuple[bytes, bytes]:
        if context.key not in self._destroyed and context.key not in self._ciphers:
            self._ciphers[context.key] = AESGCM(os.urandom(KEY_BYTES))
        cipher = await self._use(context.key)
        plain, nonce = os.urandom(KEY_BYTES), os.urandom(12)
        return plain, nonce + cipher.encrypt(nonce, plain, repr(context).encode())

    async def unwrap(self, wrapped: bytes, context: KeyContext) -> bytes:
        cipher = await self._use(context.key)
        try:
            return cipher.decrypt(wrapped[:12], wrapped[12:], repr(context).encode())
        except (InvalidTag, ValueError):
            raise SealBroken from None

    async def disable(self, key: str) -> None:
        if await self.status(key) == "destroyed":
            raise KeyDestroyed
        self._disabled.add(key)

    async def enable(self, key: str) -> None:
        if await self.status(key) == "destroyed":
            raise KeyDestroyed
        self._disabled.discard(key)

    async def destroy(self, key: str) -> None:
        self._destroyed.add(key)
        self._ciphers.pop(key, None)

    async def status(self, key: str) -> str:
        if key in self._destroyed:
            return "destroyed"
        if key not in self._ciphers:
            raise NotFound("key")
        return "disabled" if key in self._disabled else "enabled"

    async def close(self) -> None:
        """Nothing is held open."""

    async def _use(self, key: str) -> AESGCM:
        self.calls += 1
        await self.gate.wait()
        if not self.reachable:
            raise KeyUnreachable
        if key in self._destroyed:
            raise KeyDestroyed
        if key in self._disabled:
            raise KeyDisabled
        if key not in self._ciphers:
            raise SealBroken
        return self._ciphers[key]


class MemoryKeyVersions:
    """The registry's part for a keyring, in memory. It implements ``KeyVersionSource``; ``reads`` counts."""

    def __init__(self) -> None:
        self.rooms: dict[str, list[KeyVersion]] = {}
        self.reads = 0

    async def key_versions(self, room: str) -> Sequence[KeyVersion]:
        self.reads += 1
        return list(self.rooms.get(room, ()))

    async def add_key_uses(self, room: str, version: int, uses: int) -> None:
        self.change(room, version, uses=self.of(room, version).uses + uses)

    def of(self, room: str, version: int) -> KeyVersion:
        """One version as it is recorded."""
        return next(each for each in self.rooms[room] if each.version == version)

    def change(self, room: str, version: int, *, state: KeyVersionState | None = None, uses: int | None = None) -> None:
        """Record another state or count of a version."""
        self.rooms[room] = [
            KeyVersion(
                version=each.version,
                state=state if state is not None and each.version == version else each.state,
                wrapped=each.wrapped,
                created_at_us=each.created_at_us,
                uses=uses if uses is not None and each.version == version else each.uses,
            )
            for each in self.rooms[room]
        ]

    async def rotate(self, driver: KeyDriver, room: str) -> KeyVersion:
        """Record a new active version; the former becomes ``decrypt_only``. Also makes a room's first version."""
        former = self.rooms.setdefault(room, [])
        fresh = await new_version(driver, room, len(former) + 1)
        for each in list(former):
            if each.state is KeyVersionState.ACTIVE:
                self.change(room, each.version, state=KeyVersionState.DECRYPT_ONLY)
        self.rooms[room].append(fresh)
        return fresh


class KeyContract:
    """What every key service promises. Inherit, supply the fixture ``keys`` and declare the traits.

    ``acme-key`` and ``other-key`` must be usable names. ``has_control``: Nagaya itself may disable and destroy.
    """

    has_control: ClassVar[bool] = True

    ACME = KeyContext(tenant="acme", key="acme-key", version=1, purpose="tenant-data")
    FOREIGN: ClassVar[dict[str, KeyContext]] = {
        "tenant": ACME._replace(tenant="other"),
        "key": ACME._replace(key="other-key"),
        "version": ACME._replace(version=2),
        "purpose": ACME._replace(purpose="backup"),
        "app": ACME._replace(app="another"),
        "joined": ACME._replace(tenant="acm", key="eacme-key"),
    }

    def control(self, keys: KeyDriver) -> KeyControl:
        if not self.has_control:
            pytest.skip("the key service lacks the trait has_control")
        assert isinstance(keys, KeyControl)
        return keys

    async def test_a_generated_key_unwraps_to_itself(self, keys: KeyDriver) -> None:
        plain, wrapped = await keys.generate(self.ACME)
        assert len(plain) == KEY_BYTES
        assert plain not in wrapped
        assert await keys.unwrap(wrapped, self.ACME) == plain
        assert await keys.unwrap(wrapped, self.ACME) == plain

    async def test_two_generated_keys_differ(self, keys: KeyDriver) -> None:
        first, second = await keys.generate(self.ACME), await keys.generate(self.ACME)
        assert first[0] != second[0]
        assert first[1] != second[1]
        assert await keys.unwrap(first[1], self.ACME) == first[0]

    @pytest.mark.parametrize("field", sorted(FOREIGN))
    async def test_a_wrapped_key_does_not_unwrap_in_another_context(self, keys: KeyDriver, field: str) -> None:
        _, wrapped = await keys.generate(self.ACME)
        await keys.generate(self.FOREIGN[field]._replace(key="other-key"))
        with pytest.raises(SealBroken):
            await keys.unwrap(wrapped, self.FOREIGN[field])

    async def test_an_altered_wrapped_key_does_not_unwrap(self, keys: KeyDriver) -> None:
        _, wrapped = await keys.generate(self.ACME)
        for place in range(len(wrapped)):
            altered = wrapped[:place] + bytes([wrapped[place] ^ 1]) + wrapped[place + 1 :]
            with pytest.raises(SealBroken):
                await keys.unwrap(altered, self.ACME)
        for broken in (b"", wrapped[:-1], wrapped + b"\0"):
            with pytest.raises(SealBroken):
                await keys.unwrap(broken, self.ACME)

    async def test_many_at_once_get_their_own_keys(self, keys: KeyDriver) -> None:
        made = await asyncio.gather(*(keys.generate(self.ACME) for _ in range(16)))
        assert await asyncio.gather(*(keys.unwrap(wrapped, self.ACME) for _, wrapped in made)) == [
            plain for plain, _ in made
        ]

    async def test_a_disabled_key_refuses_everything_until_it_is_enabled(self, keys: KeyDriver) -> None:
        control = self.control(keys)
        plain, wrapped = await keys.generate(self.ACME)
        assert await control.status("acme-key") == "enabled"
        for _ in range(2):
            await control.disable("acme-key")
        assert await control.status("acme-key") == "disabled"
        await self._refused(keys, wrapped, KeyDisabled)
        for _ in range(2):
            await control.enable("acme-key")
        assert await control.status("acme-key") == "enabled"
        assert await keys.unwrap(wrapped, self.ACME) == plain

    async def test_disabling_one_key_leaves_the_others_alone(self, keys: KeyDriver) -> None:
        other = self.FOREIGN["key"]
        control = self.control(keys)
        await keys.generate(self.ACME)
        plain, wrapped = await keys.generate(other)
        await control.disable("acme-key")
        await control.destroy("acme-key")
        assert await keys.unwrap(wrapped, other) == plain

    async def test_a_destroyed_key_stays_destroyed(self, keys: KeyDriver) -> None:
        control = self.control(keys)
        _, wrapped = await keys.generate(self.ACME)
        for _ in range(2):
            await control.destroy("acme-key")
        assert await control.status("acme-key") == "destroyed"
        await self._refused(keys, wrapped, KeyDestroyed)
        for change in (control.enable, control.disable):
            with pytest.raises(KeyDestroyed):
                await change("acme-key")
        await self._refused(keys, wrapped, KeyDestroyed)

    async def test_a_key_that_never_was_cannot_be_disabled(self, keys: KeyDriver) -> None:
        control = self.control(keys)
        changes: tuple[Callable[[str], Awaitable[object]], ...] = (control.disable, control.enable, control.status)
        for change in changes:
            with pytest.raises(NotFound):
                await change("never-made")

    async def test_closing_twice_is_no_error(self, keys: KeyDriver) -> None:
        await keys.close()
        await keys.close()

    async def _refused(self, keys: KeyDriver, wrapped: bytes, error: type[Exception]) -> None:
        with pytest.raises(error):
            await keys.unwrap(wrapped, self.ACME)
        with pytest.raises(error):
            await keys.generate(self.ACME)
