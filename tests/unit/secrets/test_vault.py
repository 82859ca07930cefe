import asyncio
from collections.abc import Sequence

import pytest

from nagaya.errors import ConditionFailed, Conflict, InvalidValue, StoreUnreachable
from nagaya.secrets.embedded import EmbeddedSecrets
from nagaya.secrets.vault import (
    AWS_CONNECTION,
    AZURE_CONNECTION,
    ENTRAID_CONFIG,
    LLM_CONNECTION,
    MAX_VALUE_BYTES,
    Vault,
    full_name,
)
from nagaya.stores.driver import Row


class Values:
    """A sealed key-value place that can be made to lose every race."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Row] = {}
        self.racing = False

    async def get(self, sort: bytes) -> Row | None:
        return self.rows.get(sort)

    async def put(self, sort: bytes, body: bytes, *, expect: int) -> int:
        self._check(sort, expect)
        self.rows[sort] = Row(sort, expect + 1, body)
        return expect + 1

    async def delete(self, sort: bytes, *, expect: int) -> None:
        self._check(sort, expect)
        del self.rows[sort]

    async def query(self, *, after: bytes, limit: int) -> Sequence[Row]:
        return sorted(row for row in self.rows.values() if row.sort > after)[:limit]

    def _check(self, sort: bytes, expect: int) -> None:
        found = self.rows.get(sort)
        if self.racing or (0 if found is None else found.revision) != expect:
            raise ConditionFailed


@pytest.fixture
def values() -> Values:
    return Values()


@pytest.fixture
def vault(values: Values) -> Vault:
    return Vault(EmbeddedSecrets(values))


async def test_the_guides_names_are_kept(vault: Vault) -> None:
    for name in (AWS_CONNECTION, AZURE_CONNECTION, LLM_CONNECTION, ENTRAID_CONFIG):
        await vault.put(name, b"x")
    assert await vault.names() == ["aws-connection", "azure-connection", "entraid-config", "llm-connection"]
    await vault.delete(LLM_CONNECTION)
    assert await vault.get(LLM_CONNECTION) is None
    assert await vault.get(AWS_CONNECTION) == b"x"
    assert full_name("acme", LLM_CONNECTION) == "tenant/acme/llm-connection"


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "../x", "a" * 65, "a_b", "a\n", "日本", "tenant/other/llm-connection"]
)
async def test_a_name_outside_the_rule_reaches_no_store(vault: Vault, values: Values, name: str) -> None:
    for call in (vault.get(name), vault.put(name, b"x"), vault.delete(name)):
        with pytest.raises(InvalidValue):
            await call
    assert values.rows == {}


async def test_a_value_above_64_kib_is_refused_and_not_shown(vault: Vault) -> None:
    await vault.put(LLM_CONNECTION, b"s" * MAX_VALUE_BYTES)
    with pytest.raises(InvalidValue) as refused:
        await vault.put(LLM_CONNECTION, b"s" * (MAX_VALUE_BYTES + 1))
    assert "sss" not in str(refused.value)
    assert await vault.get(LLM_CONNECTION) == b"s" * MAX_VALUE_BYTES


async def test_a_writer_that_always_loses_gives_up(vault: Vault, values: Values) -> None:
    await vault.put(LLM_CONNECTION, b"x")
    values.racing = True
    for call in (vault.put(LLM_CONNECTION, b"y"), vault.delete(LLM_CONNECTION)):
        with pytest.raises(Conflict):
            await call
    assert await vault.get(LLM_CONNECTION) == b"x"


@pytest.mark.parametrize("broken", [False, True])
async def test_a_place_that_does_not_answer_is_told_as_such(broken: bool) -> None:
    class Stuck:
        async def _answer(self) -> None:
            if broken:
                raise OSError(5, "I/O error")
            await asyncio.Event().wait()

        async def get(self, name: str) -> bytes | None:
            return await self._answer()

        async def put(self, name: str, value: bytes) -> None:
            await self._answer()

        async def delete(self, name: str) -> None:
            await self._answer()

        async def names(self) -> Sequence[str]:
            await self._answer()
            return []

    vault = Vault(Stuck(), deadline_s=0.01)
    for call in (vault.get("x"), vault.put("x", b""), vault.delete("x"), vault.names()):
        with pytest.raises(StoreUnreachable):
            await call


async def test_of_two_who_change_a_secret_at_once_neither_overwrites_the_other(values: Values, vault: Vault) -> None:
    def decide(held: bytes | None) -> bytes:
        if held is None:
            values.rows[b"llm-connection"] = Row(b"llm-connection", 1, b"theirs")
        return (held or b"") + b" mine"

    assert await vault.change("llm-connection", decide) == b"theirs mine"
    assert await vault.get("llm-connection") == b"theirs mine"


async def test_a_place_that_cannot_tell_takes_the_last_value(values: Values) -> None:
    class Plain:
        """Without the power to swap."""

        def __init__(self, whole: EmbeddedSecrets) -> None:
            self.get, self.put, self.delete, self.names = whole.get, whole.put, whole.delete, whole.names

    vault = Vault(Plain(EmbeddedSecrets(values)))
    assert await vault.change("llm-connection", lambda held: (held or b"") + b"x") == b"x"
    assert await vault.change("llm-connection", lambda held: (held or b"") + b"x") == b"xx"


async def test_what_others_keep_changing_is_not_changed(values: Values, vault: Vault) -> None:
    values.racing = True
    with pytest.raises(Conflict):
        await vault.change("llm-connection", lambda _: b"x")
    with pytest.raises(InvalidValue):
        await vault.change("llm-connection", lambda _: b"x" * (MAX_VALUE_BYTES + 1))
    values.racing = False
    assert await vault.change("llm-connection", lambda _: b"x") == b"x"
    assert await vault.change("llm-connection", lambda held: held or b"y") == b"x"
