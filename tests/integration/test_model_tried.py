"""A model in the tenant's own account is asked for a word when the tenant is made or gets it; what is missing is named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from nagaya import Nagaya
from nagaya.errors import ModelAddressWrong, ModelUnreachable, NagayaError, PermissionMissing
from nagaya.settings import Settings
from parts.aws import REGION, point_at
from parts.bedrock_server import BedrockServer, running


@pytest.fixture(scope="module")
def running_server() -> Iterator[BedrockServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(running_server: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> BedrockServer:
    running_server.reset()
    point_at(monkeypatch, running_server.url)
    monkeypatch.setattr("nagaya.models.bedrock_errors.PAUSE_FIRST_S", 0.01)
    return running_server


@pytest.fixture
async def nagaya(server: BedrockServer, tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path))) as opened:
        yield opened


def at(model: str) -> str:
    return f"bedrock://{REGION}/{model}"


@pytest.mark.parametrize(
    ("model", "refusal", "words"),
    [
        ("denied", PermissionMissing, "bedrock:InvokeModelWithResponseStream"),
        ("not-granted", PermissionMissing, "."),
        ("absent", ModelAddressWrong, "."),
    ],
)
async def test_a_tenant_whose_model_may_not_be_used_is_not_made_and_its_own_is_not_taken_away(
    nagaya: Nagaya, model: str, refusal: type[NagayaError], words: str
) -> None:
    with pytest.raises(refusal, match=words):
        await nagaya.tenants.create("acme", name="Acme", models=["builtin://", at(model)])
    assert await nagaya.tenants.list() == []
    await nagaya.tenants.create("acme", name="Acme")
    with pytest.raises(refusal, match=words):
        await nagaya.tenants.change("acme", {"models": [at(model)]})
    assert (await nagaya.tenants.show("acme")).models == ("builtin://",)


async def test_a_model_that_is_away_is_said_to_be_away(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(ModelUnreachable):
        await nagaya.tenants.create("acme", name="Acme", models=[at("good")])
    assert await nagaya.tenants.list() == []


async def test_each_new_model_is_asked_once_for_a_word_and_one_that_takes_a_key_is_not_asked(
    nagaya: Nagaya, server: BedrockServer
) -> None:
    await nagaya.tenants.create("acme", name="Acme", models=[at("good"), "openai://gpt-5-mini"])
    assert [path for path, _, _ in server.seen] == ["/model/good/converse-stream"]
    assert server.seen[0][2]["inferenceConfig"]["maxTokens"] == 16
    await nagaya.tenants.change("acme", {"models": ["openai://gpt-5-mini", at("good")], "name": "Acme KK"})
    assert len(server.seen) == 1


async def test_a_model_that_is_busy_is_there(nagaya: Nagaya, server: BedrockServer) -> None:
    await nagaya.tenants.create("acme", name="Acme", models=[at("throttled")])
    assert server.seen
