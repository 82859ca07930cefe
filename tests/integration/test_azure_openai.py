"""Azure OpenAI against a resource of the tests' own over a socket: keys, identities, its errors, regions."""

from __future__ import annotations

import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import trustme
from aiohttp import web

from nagaya.adapters import Surroundings
from nagaya.errors import (
    AddressRefused,
    CloudCredentialsRefused,
    CloudUnreachable,
    ConnectionSecretInvalid,
    ContentFiltered,
    InvalidValue,
    MissingExtra,
    ModelAddressWrong,
    ModelRateLimited,
    ModelRefusedKey,
    ModelRefusedRequest,
    ModelUnreachable,
    NagayaError,
    PermissionMissing,
    RegionRefused,
)
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.azure_openai import AzureOpenAIConnection
from nagaya.models.driver import ModelRequest, Turn
from nagaya.models.model import Embeddings, Model
from nagaya.models.openai_compatible import OpenAICompatibleModel
from nagaya.models.opening import open_embeddings, open_model
from nagaya.settings import Settings
from parts.azure_openai_server import PRINCIPAL, TOKEN, AzureOpenAIServer
from parts.chat_server import ANSWER, KEY, running
from parts.entra import TENANT, Entra

SECRET_WORDS = "my diagnosis is private"
ASK = ModelRequest((Turn("developer", "Be brief."), Turn("user", SECRET_WORDS)))
SCOPE = "https://cognitiveservices.azure.com"


@pytest.fixture(scope="module")
def running_server() -> Iterator[AzureOpenAIServer]:
    with running(AzureOpenAIServer) as server:
        yield server


@pytest.fixture
def server(running_server: AzureOpenAIServer, monkeypatch: pytest.MonkeyPatch) -> AzureOpenAIServer:
    running_server.reset()
    monkeypatch.setattr("nagaya.models.openai_errors.PAUSE_FIRST_S", 0.01)
    return running_server


def surroundings(
    secret: bytes | None = None,
    *,
    allowed: tuple[str, ...] = ("127.0.0.1", "login.test"),
    regions: tuple[str, ...] = (),
) -> Surroundings:
    async def secret_of(name: str) -> bytes | None:
        return secret if name == "azure-connection" else None

    async def to_loopback(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    policy = EgressPolicy(allowed, resolver=to_loopback)
    return Surroundings(Settings(model_deadline_s=10.0), SystemClock(), policy, "acme", regions, secret_of)


class Opened:
    def __init__(self, server: AzureOpenAIServer) -> None:
        self._server = server
        self.models: list[Model] = []

    def url(self, deployment: str, query: str = "") -> str:
        return f"azure-openai+http://127.0.0.1:{self._server.port}/{deployment}{query}"

    async def __call__(
        self, deployment: str, given: Surroundings | None = None, *, api_key: str | None = KEY, query: str = ""
    ) -> Model:
        driver = await open_model(self.url(deployment, query), given or surroundings(), api_key=api_key)
        self.models.append(Model(driver, deadline_s=10.0))
        return self.models[-1]

    def by_token(self, deployment: str, token: str = TOKEN) -> Model:
        async def provider() -> str:
            return token

        connection = AzureOpenAIConnection(
            self._server.url,
            KEY,
            api_version="2024-10-21",
            policy=EgressPolicy(["127.0.0.1"]),
            token=provider,
            room="acme",
        )
        self.models.append(Model(OpenAICompatibleModel(connection, deployment)))
        return self.models[-1]


@pytest.fixture
async def opened(server: AzureOpenAIServer) -> AsyncIterator[Opened]:
    opened = Opened(server)
    yield opened
    for model in opened.models:
        await model.close()
        await model.close()


async def test_a_deployment_is_asked_by_its_path_with_the_key_in_its_own_header(
    opened: Opened, server: AzureOpenAIServer
) -> None:
    answer = await (await opened("gpt-here")).complete(ModelRequest(ASK.turns, max_output_tokens=100))
    assert answer.text == ANSWER
    assert answer.finished.usage.input_tokens == 40
    headers, body = server.seen[-1]
    assert headers["api-key"] == KEY
    assert "authorization" not in headers
    assert server.queries == ["api-version=2024-10-21"]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert body["max_completion_tokens"] == 100
    assert body["stream_options"] == {"include_usage": True}


async def test_another_version_of_the_api_may_be_asked_for(opened: Opened, server: AzureOpenAIServer) -> None:
    await (await opened("gpt-here", query="?api-version=2025-04-01-preview")).complete(ASK)
    assert server.queries == ["api-version=2025-04-01-preview"]


async def test_a_token_is_sent_in_place_of_the_key_and_never_with_it(opened: Opened, server: AzureOpenAIServer) -> None:
    assert (await opened.by_token("gpt-here").complete(ASK)).text == ANSWER
    headers, _ = server.seen[-1]
    assert headers["authorization"] == f"Bearer {TOKEN}"
    assert "api-key" not in headers


async def test_nothing_of_the_servers_own_environment_reaches_a_tenants_resource(
    opened: Opened, server: AzureOpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID",
        "OPENAI_PROJECT_ID", "OPENAI_API_VERSION", "OPENAI_WEBHOOK_SECRET",
    ):  # fmt: skip
        monkeypatch.setenv(name, "operators-own")
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "http://127.0.0.1:1/operators-own")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "api-key: operators-own")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    await (await opened("gpt-here")).complete(ASK)
    await opened.by_token("gpt-here").complete(ASK)
    assert "operators-own" not in str(server.seen) + str(server.queries)


@pytest.mark.parametrize(
    ("deployment", "error", "hits"),
    [
        ("limited", ModelRateLimited, 1),
        ("limited-ms", ModelRateLimited, 1),
        ("down", ModelUnreachable, 3),
        ("filtered", ContentFiltered, 1),
        ("filtered-here", ContentFiltered, 1),
        ("no-deployment", ModelAddressWrong, 1),
        ("firewall", PermissionMissing, 1),
        ("no-role", ModelRefusedKey, 1),
        ("refused", ModelRefusedRequest, 1),
    ],
)
async def test_every_failure_has_its_own_error_and_repeats_no_word(
    deployment: str, error: type[NagayaError], hits: int, opened: Opened, server: AzureOpenAIServer
) -> None:
    with pytest.raises(NagayaError) as raised:
        await (await opened(deployment)).complete(ASK)
    assert type(raised.value) is error
    assert raised.value.__cause__ is None
    for text in (raised.value.message("en"), raised.value.message("ja")):
        assert SECRET_WORDS not in text
        assert KEY not in text
    assert server.hits == hits
    assert raised.value.retry_after_s == {"limited": 90, "limited-ms": 43}.get(deployment)


@pytest.mark.parametrize(
    ("deployment", "action"),
    [
        ("no-role", "Microsoft.CognitiveServices/accounts/OpenAI/deployments/chat/completions/action"),
        ("no-role-unsaid", "Cognitive Services OpenAI User"),
    ],
)
async def test_an_identity_without_the_role_is_told_which_one(deployment: str, action: str, opened: Opened) -> None:
    with pytest.raises(PermissionMissing) as raised:
        await opened.by_token(deployment).complete(ASK)
    assert action in raised.value.message("en")
    assert PRINCIPAL not in raised.value.message("en")


async def test_a_token_that_is_not_taken_is_no_missing_permission(opened: Opened) -> None:
    with pytest.raises(CloudCredentialsRefused) as raised:
        await opened.by_token("gpt-here", "ended").complete(ASK)
    assert "ended" not in raised.value.message("en")


async def test_a_content_filter_that_runs_beside_the_answer_does_not_disturb_it(opened: Opened) -> None:
    answer = await (await opened("beside")).complete(ASK)
    assert answer.text == ANSWER
    assert answer.finished.reason == "stop"


async def test_a_content_filter_midway_ends_the_answer_and_says_so(opened: Opened) -> None:
    assert (await (await opened("filters-midway")).complete(ASK)).finished.reason == "content_filter"


# --- identities -------------------------------------------------------------------------------------------------


@pytest.fixture
async def entra(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Entra, bytes]]:
    """An Entra ID over https, and the secret of a service principal that it knows."""
    entra, authority = Entra(), trustme.CA()
    entra.clients["client"] = "the-client's-secret"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("login.test").configure_cert(context)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", entra.answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    monkeypatch.setattr("nagaya.clouds.azure.default_trust", lambda: trust)
    secret = {
        "tenant_id": TENANT,
        "client_id": "client",
        "client_secret": "the-client's-secret",
        "authority": f"https://login.test:{runner.addresses[0][1]}",
    }
    yield entra, json.dumps(secret).encode()
    await runner.cleanup()


async def test_without_a_key_the_tenants_service_principal_signs_in_once(
    opened: Opened, server: AzureOpenAIServer, entra: tuple[Entra, bytes]
) -> None:
    directory, secret = entra
    model = await opened("gpt-here", surroundings(secret), api_key=None)

    class Tokens(set[str]):
        def __contains__(self, token: object) -> bool:
            return directory.holder(str(token), SCOPE) == "client"

    server.tokens = Tokens()
    for _ in range(3):
        assert (await model.complete(ASK)).text == ANSWER
    assert directory.asked == 1
    assert "api-key" not in server.seen[-1][0]


async def test_a_key_goes_before_the_service_principal(
    opened: Opened, server: AzureOpenAIServer, entra: tuple[Entra, bytes]
) -> None:
    directory, secret = entra
    await (await opened("gpt-here", surroundings(secret))).complete(ASK)
    assert directory.asked == 0
    assert server.seen[-1][0]["api-key"] == KEY


async def test_a_service_principal_that_is_refused_and_a_directory_that_is_away_are_told_apart(
    opened: Opened, server: AzureOpenAIServer, entra: tuple[Entra, bytes]
) -> None:
    directory, secret = entra
    directory.clients.clear()
    with pytest.raises(CloudCredentialsRefused, match="AADSTS7000215"):
        await (await opened("gpt-here", surroundings(secret), api_key=None)).complete(ASK)
    fields = json.loads(secret) | {"authority": f"https://login.test:{unused_port()}"}
    with pytest.raises(CloudUnreachable):
        await (await opened("gpt-here", surroundings(json.dumps(fields).encode()), api_key=None)).complete(ASK)
    assert server.hits == 0


async def test_an_account_key_of_another_service_is_no_identity(opened: Opened) -> None:
    with pytest.raises(CloudCredentialsRefused):
        await (await opened("gpt-here", surroundings(b'{"cosmos_key": "a2V5"}'), api_key=None)).complete(ASK)
    with pytest.raises(ConnectionSecretInvalid):
        await opened("gpt-here", surroundings(b"{}"), api_key=None)


async def test_the_machines_own_identity_goes_to_no_host_of_a_tenants_choice() -> None:
    given = surroundings(allowed=())
    with pytest.raises(InvalidValue, match="Azure's own names"):
        await open_model("azure-openai://models.example/gpt", given, api_key=None)
    driver = await open_model("azure-openai://acme/gpt", given, api_key=None)
    assert driver.name == "gpt"
    await driver.close()


@pytest.mark.parametrize(
    ("host", "scope"),
    [("acme.openai.azure.us", "azure.us"), ("acme.openai.azure.cn", "azure.cn"), ("acme", "azure.com")],
)
async def test_a_token_is_asked_for_the_cloud_that_the_resource_lies_in(
    host: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Credential:
        async def get_token(self, scope: str) -> Any:
            asked.append(scope)
            raise CloudCredentialsRefused(room="acme", detail="not today")

    async def credential(account: object) -> Credential:
        return Credential()

    monkeypatch.setattr("nagaya.clouds.azure.AzureAccount.credential", credential)
    driver = await open_model(f"azure-openai://{host}/gpt", surroundings(), api_key=None)
    with pytest.raises(CloudCredentialsRefused, match="not today"):
        await Model(driver).complete(ASK)
    assert asked == [f"https://cognitiveservices.{scope}/.default"]
    await driver.close()


async def test_without_the_extra_an_identity_is_not_to_be_had_and_a_key_still_works(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "nagaya.clouds.azure", raising=False)
    monkeypatch.delattr("nagaya.clouds.azure", raising=False)
    monkeypatch.setitem(sys.modules, "azure.core.credentials", None)
    with pytest.raises(MissingExtra, match=r"nagaya\[azure\]"):
        await opened("gpt-here", api_key=None)
    assert (await (await opened("gpt-here")).complete(ASK)).text == ANSWER


# --- places -----------------------------------------------------------------------------------------------------


async def test_a_tenant_pinned_to_regions_gets_no_model_elsewhere_and_none_of_which_it_is_not_known(
    opened: Opened, server: AzureOpenAIServer
) -> None:
    given = surroundings(regions=("japaneast",))
    for query in ("", "?region=eastus2"):
        with pytest.raises(RegionRefused):
            await opened("gpt-here", given, query=query)
    assert (await (await opened("gpt-here", given, query="?region=Japan%20East")).complete(ASK)).text == ANSWER
    assert server.hits == 1


async def test_a_resource_that_points_inside_is_never_connected_to(opened: Opened, server: AzureOpenAIServer) -> None:
    with pytest.raises(AddressRefused):
        await opened("gpt-here", surroundings(allowed=()))
    assert server.hits == 0


# --- embeddings -------------------------------------------------------------------------------------------------


async def test_embeddings_are_asked_for_their_size_where_the_model_takes_one(
    opened: Opened, server: AzureOpenAIServer
) -> None:
    for deployment, hits in (("embedder", 2), ("first-generation", 3)):
        server.reset()
        url = opened.url(deployment, "?dimensions=4")
        driver = await open_embeddings(url, surroundings(), api_key=KEY)
        vectors, _ = await Embeddings(driver).embed(["x"] * 300)
        assert len(vectors) == 300
        assert server.hits == hits
        assert ("dimensions" in server.seen[-1][1]) is (deployment == "embedder")
        await driver.close()


async def test_a_text_that_is_refused_is_refused(opened: Opened) -> None:
    driver = await open_embeddings(opened.url("refused", "?dimensions=4"), surroundings(), api_key=KEY)
    with pytest.raises(ModelRefusedRequest):
        await Embeddings(driver).embed(["x"])
    await driver.close()


def unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
