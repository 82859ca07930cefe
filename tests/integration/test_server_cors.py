"""Web pages of other origins: nothing unless an operator names them, and then all that a browser needs to hear."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from nagaya.errors import SettingsInvalid
from nagaya.settings import load_settings
from support.planted import assert_error
from support.server import RunningServer, running

PAGE = "https://app.example"
OTHER = "http://localhost:3000"
STAINLESS = "authorization, content-type, x-stainless-lang, x-stainless-retry-count, openai-beta, idempotency-key"


def preflight(server: RunningServer, origin: str, method: str = "POST", headers: str = STAINLESS) -> httpx.Response:
    asked = {
        "origin": origin, "access-control-request-method": method, "access-control-request-headers": headers,
    }  # fmt: skip
    return server.client().options("/v1/responses", headers=asked)


def marks(reply: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in reply.headers.items() if name.startswith("access-control-")}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("named"), NAGAYA_CORS_ORIGINS=f"{PAGE},{OTHER}") as server:
        server.tenant("acme")
        yield server


@pytest.fixture(scope="module")
def open_to_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("all"), NAGAYA_CORS_ORIGINS="*") as server:
        server.tenant("acme")
        yield server


def test_without_configuration_no_page_may_call(server: RunningServer):
    refused = preflight(server, PAGE)
    assert_error(refused, 405)
    assert marks(refused) == {}
    assert marks(server.client().get("/v1/models", headers={"origin": PAGE})) == {}


@pytest.mark.parametrize("origin", [PAGE, OTHER])
def test_a_named_page_may_send_what_its_client_sends(named: RunningServer, origin: str):
    allowed = preflight(named, origin)
    assert allowed.status_code == 204
    assert allowed.content == b""
    found = marks(allowed)
    assert found["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in found, "a page brings a token, no cookies"
    assert found["access-control-allow-headers"] == STAINLESS
    assert "DELETE" in found["access-control-allow-methods"]
    assert "Origin" in allowed.headers["vary"]
    assert allowed.headers["x-request-id"]
    assert allowed.headers["x-content-type-options"] == "nosniff"


def test_a_named_page_reads_answers_errors_and_streams(named: RunningServer):
    client = named.client(named.key("acme"), origin=PAGE)
    stream = {"input": "Hello.", "stream": True}
    for reply in (
        client.get("/v1/models"),
        client.get("/v1/conversations/conv_none"),
        client.get("/nowhere"),
        client.post("/v1/responses", json=stream),
        named.client(origin=PAGE).get("/v1/models"),
    ):
        found = marks(reply)
        assert found["access-control-allow-origin"] == PAGE, reply.url
        assert "access-control-allow-credentials" not in found, "a page brings a token, no cookies"
        assert "x-request-id" in found["access-control-expose-headers"]
        assert "retry-after" in found["access-control-expose-headers"]
        assert "Origin" in reply.headers["vary"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null", "https://app.example:444"]
)  # fmt: skip
def test_another_page_gets_no_mark(named: RunningServer, origin: str):
    refused = preflight(named, origin)
    assert_error(refused, 403, "origin_refused")
    assert refused.headers["x-request-id"]
    assert "access-control-allow-origin" not in marks(refused)
    assert "access-control-allow-origin" not in marks(named.client().get("/v1/models", headers={"origin": origin}))
    assert_error(preflight(named, PAGE, method="BREW"), 403, "origin_refused")


def test_a_refused_page_reads_its_own_language(named: RunningServer):
    headers = {"origin": "https://evil.example", "access-control-request-method": "GET", "accept-language": "ja"}
    assert "オリジン" in named.client().options("/v1/models", headers=headers).json()["error"]["message"]


def test_a_caller_that_is_no_page_hears_nothing_of_pages(named: RunningServer):
    assert "access-control-allow-origin" not in marks(named.client(named.key("acme")).get("/v1/models"))


def test_all_pages_may_call(open_to_all: RunningServer):
    for found in (
        marks(preflight(open_to_all, "https://any.example")),
        marks(open_to_all.client(open_to_all.key("acme"), origin="https://any.example").get("/v1/models")),
    ):
        assert found["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in found


@pytest.mark.parametrize("origin", ["https://app.example/", "app.example", "https://app.example/page", ""])
def test_what_is_no_origin_is_refused_at_the_start(origin: str):
    with pytest.raises(SettingsInvalid, match="cors_origins"):
        load_settings(flags={"cors_origins": [origin]}, environment={})
