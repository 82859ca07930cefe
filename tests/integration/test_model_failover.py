"""A tenant's models in order, each with a vendor of its own over a socket: who answers when the first is out."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from nagaya.errors import AnswerCut, ContentFiltered, ModelRefusedRequest, RegionRefused
from nagaya.kernel.breaker import Breaker
from nagaya.models.driver import ModelRequest, TextDelta, ToolCall, Turn
from nagaya.models.line import ModelInLine, ModelLine
from nagaya.models.model import Model
from nagaya.models.opening import open_model
from nagaya.testing.clock import ManualClock
from parts import bedrock_server, chat_server
from parts.aws import point_at, surroundings
from parts.azure_openai_server import AzureOpenAIServer
from parts.bedrock_server import ANSWER, BedrockServer
from parts.chat_server import KEY, ChatServer

ASK = ModelRequest((
    Turn("user", "Look it up."),
    Turn("assistant", "", tool_calls=(ToolCall("call|of another vendor", "look.up", "{}"),)),
    Turn("tool", "red", tool_call_id="call|of another vendor"),
    Turn("user", "Who mended the roof?"),
))  # fmt: skip


class Vendors:
    def __init__(self, openai: ChatServer, azure: AzureOpenAIServer, bedrock: BedrockServer) -> None:
        self.openai = openai
        self.azure = azure
        self.bedrock = bedrock

    def url(self, vendor: str, model: str) -> str:
        match vendor:
            case "openai":
                return f"openai+http://127.0.0.1:{self.openai.port}/v1#{model}"
            case "azure":
                return f"azure-openai+http://127.0.0.1:{self.azure.port}/{model}"
            case "absent":
                with socket.socket() as unused:
                    unused.bind(("127.0.0.1", 0))
                    return f"openai+http://127.0.0.1:{unused.getsockname()[1]}/v1#{model}"
        return f"bedrock://ap-northeast-1/{model}"


@pytest.fixture(scope="module")
def running_vendors() -> Iterator[Vendors]:
    with (
        chat_server.running() as openai,
        chat_server.running(AzureOpenAIServer) as azure,
        bedrock_server.running() as bedrock,
    ):
        yield Vendors(openai, azure, bedrock)


@pytest.fixture
def vendors(running_vendors: Vendors, monkeypatch: pytest.MonkeyPatch) -> Vendors:
    for server in (running_vendors.openai, running_vendors.azure, running_vendors.bedrock):
        server.reset()
    point_at(monkeypatch, running_vendors.bedrock.url)
    for place in ("bedrock_errors", "openai_errors"):
        monkeypatch.setattr(f"nagaya.models.{place}.PAUSE_FIRST_S", 0.01)
    return running_vendors


@contextlib.asynccontextmanager
async def line(*urls: str) -> AsyncIterator[ModelLine]:
    clock = ManualClock()
    drivers = [await open_model(url, surroundings(), api_key=KEY) for url in urls]
    models = [Model(driver, deadline_s=60.0, idle_s=60.0) for driver in drivers]
    yield ModelLine([ModelInLine(model, Breaker(clock, failures=3)) for model in models])
    for model in models:
        await model.close()


@pytest.mark.parametrize(
    ("vendor", "model"),
    [
        ("absent", "gone"),
        ("openai", "down"),
        ("openai", "limited"),
        ("openai", "forbidden"),
        ("azure", "down"),
        ("azure", "limited"),
        ("azure", "firewall"),
    ],
)
async def test_where_the_first_model_is_out_bedrock_answers_the_same_conversation_and_is_named(
    vendor: str, model: str, vendors: Vendors
) -> None:
    async with line(vendors.url(vendor, model), vendors.url("bedrock", "acme.good-v1:0")) as models:
        answer = await models.complete(ASK)
    assert answer.text == ANSWER
    assert answer.finished.model == "acme.good-v1:0"
    assert [message["role"] for message in vendors.bedrock.seen[-1][2]["messages"]] == ["user", "assistant", "user"]


@pytest.mark.parametrize("model", ["down", "broken", "throttled", "denied", "expired", "not-ready", "at-once"])
async def test_where_bedrock_is_out_azure_answers(model: str, vendors: Vendors) -> None:
    async with line(vendors.url("bedrock", model), vendors.url("azure", "good")) as models:
        answer = await models.complete(ASK)
    assert answer.text == chat_server.ANSWER
    assert answer.finished.model == "served"
    assert vendors.azure.hits == 1


async def test_what_the_first_refuses_is_not_asked_of_the_next(vendors: Vendors) -> None:
    for first, error in (("filtered-here", ContentFiltered), ("refused", ModelRefusedRequest)):
        async with line(vendors.url("azure", first), vendors.url("bedrock", "good")) as models:
            with pytest.raises(error):
                await models.complete(ASK)
    assert vendors.bedrock.hits == 0


async def test_half_an_answer_is_not_continued_by_the_next(vendors: Vendors) -> None:
    async with line(vendors.url("bedrock", "stream-error"), vendors.url("azure", "good")) as models:
        stream = models.stream(ASK)
        assert isinstance(await anext(stream), TextDelta)
        with pytest.raises(AnswerCut):
            async for _ in stream:
                pass
    assert vendors.azure.hits == 0


async def test_the_next_model_is_inside_the_tenants_regions_or_is_none(vendors: Vendors) -> None:
    with pytest.raises(RegionRefused):
        await open_model(vendors.url("azure", "good"), surroundings(regions=("ap-northeast-1",)), api_key=KEY)
    given = surroundings(regions=("ap-northeast-1",))
    driver = await open_model(vendors.url("bedrock", "good"), given, api_key=None)
    assert (await Model(driver).complete(ASK)).text == ANSWER
    await driver.close()
