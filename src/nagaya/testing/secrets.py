"""The contract that every secret store keeps."""

from __future__ import annotations

import asyncio

from nagaya.secrets.driver import SecretDriver


class SecretContract:
    """What every secret store promises. Inherit and supply the fixtures ``secrets`` (empty) and ``other_secrets``
    (another room's, over the same place where the adapter has one)."""

    async def test_a_secret_comes_back_byte_for_byte(self, secrets: SecretDriver) -> None:
        for value in (b"", b"\0", b"sk-1234", bytes(range(256)) * 256):
            await secrets.put("llm-connection", value)
            assert await secrets.get("llm-connection") == value

    async def test_what_was_never_set_is_none(self, secrets: SecretDriver) -> None:
        assert await secrets.get("llm-connection") is None
        assert list(await secrets.names()) == []

    async def test_setting_again_replaces(self, secrets: SecretDriver) -> None:
        for value in (b"first", b"second", b"second"):
            await secrets.put("llm-connection", value)
        assert await secrets.get("llm-connection") == b"second"
        assert list(await secrets.names()) == ["llm-connection"]

    async def test_a_removed_secret_is_gone_and_may_be_removed_again(self, secrets: SecretDriver) -> None:
        await secrets.put("llm-connection", b"x")
        for _ in range(2):
            await secrets.delete("llm-connection")
        assert await secrets.get("llm-connection") is None
        assert list(await secrets.names()) == []

    async def test_names_are_sorted_and_complete(self, secrets: SecretDriver) -> None:
        names = [f"secret-{number}" for number in range(250)]
        for name in names:
            await secrets.put(name, b"x")
        assert list(await secrets.names()) == sorted(names)

    async def test_writers_at_once_leave_one_of_their_values(self, secrets: SecretDriver) -> None:
        values = [b"%d" % number for number in range(4)]
        await asyncio.gather(*(secrets.put("llm-connection", value) for value in values))
        assert await secrets.get("llm-connection") in values

    async def test_another_room_sees_nothing(self, secrets: SecretDriver, other_secrets: SecretDriver) -> None:
        await secrets.put("llm-connection", b"acme's")
        assert await other_secrets.get("llm-connection") is None
        assert list(await other_secrets.names()) == []
        await other_secrets.delete("llm-connection")
        assert await secrets.get("llm-connection") == b"acme's"
