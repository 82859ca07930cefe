"""Secrets in AWS Secrets Manager keep the secret contract, on a stand-in."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator

import pytest

from nagaya.errors import InvalidValue, RegionRefused
from nagaya.secrets.aws import AwsSecrets, open_secrets
from nagaya.secrets.driver import SecretDriver
from nagaya.testing.secrets import SecretContract
from parts.aws import REGION, point_at, surroundings

pytest_plugins = ["parts.ministack"]

_numbers = itertools.count(1)


@pytest.fixture(autouse=True)
def stand_in(ministack, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(monkeypatch, ministack.url)


@pytest.fixture
def room() -> str:
    return f"acme{next(_numbers)}"


@pytest.fixture
async def secrets(room: str) -> AsyncIterator[AwsSecrets]:
    opened = await open_secrets(f"awssecrets://{REGION}", surroundings(room))
    yield opened
    await opened.close()
    await opened.close()


class TestAwsSecrets(SecretContract):
    @pytest.fixture
    async def other_secrets(self, room: str) -> AsyncIterator[SecretDriver]:
        opened = await open_secrets(f"awssecrets://{REGION}", surroundings(f"{room}-corp"))
        yield opened
        await opened.close()


async def test_a_secret_that_another_program_wrote_by_its_name_is_read(ministack, secrets: AwsSecrets, room: str):
    value = json.dumps({"role_arn": "arn:aws:iam::1:role/x"})
    ministack.call("secretsmanager", "CreateSecret", Name=f"tenant/{room}/aws-connection", SecretString=value)
    assert await secrets.get("aws-connection") == value.encode()
    assert await secrets.names() == ["aws-connection"]


async def test_text_is_kept_as_text_for_other_programs(ministack, secrets: AwsSecrets, room: str):
    await secrets.put("llm-connection", '{"key": "値"}'.encode())
    found = ministack.call("secretsmanager", "GetSecretValue", SecretId=f"tenant/{room}/llm-connection")
    assert json.loads(found["SecretString"]) == {"key": "値"}


@pytest.mark.parametrize("value", [b"", b"\0nagaya\0", b"\0nagaya\0\0nagaya\0x", b"\xff"])
async def test_values_that_aws_keeps_no_place_for_come_back(secrets: AwsSecrets, value: bytes):
    await secrets.put("odd", value)
    assert await secrets.get("odd") == value


async def test_a_secret_that_waits_for_its_deletion_is_gone_and_may_be_set_again(ministack, secrets, room: str):
    await secrets.put("llm-connection", b"old")
    ministack.call("secretsmanager", "DeleteSecret", SecretId=f"tenant/{room}/llm-connection")
    assert await secrets.get("llm-connection") is None
    await secrets.delete("llm-connection")
    await secrets.put("llm-connection", b"new")
    assert await secrets.get("llm-connection") == b"new"


async def test_a_place_elsewhere_is_refused():
    for url in ("awssecrets://nowhere", "awssecrets://us-east-1.evil.example", "awssecrets://"):
        with pytest.raises(RegionRefused):
            await open_secrets(url, surroundings())
    with pytest.raises(RegionRefused):
        await open_secrets("awssecrets://us-east-1", surroundings(regions=("ap-northeast-1",)))
    with pytest.raises(InvalidValue):
        await open_secrets(f"awssecrets://{REGION}?x=1", surroundings())
    with pytest.raises(InvalidValue):
        await open_secrets(f"awssecrets://{REGION}", surroundings("a/b"))
