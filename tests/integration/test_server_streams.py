"""Open streams of a running server: counted, bounded for each tenant, closed in the words of their API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from openai.types.responses import ResponseErrorEvent

from support.model_server import ModelServer
from support.planted import assert_error
from support.server import RunningServer, running, sse

CHAT = {"messages": [{"role": "user", "content": "Hello."}], "model": "gate", "stream": True}
RESPONSE = {"input": "Hello.", "model": "gate", "stream": True}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory, model_server: ModelServer) -> Iterator[RunningServer]:
    """A server on which a tenant may have two streams open."""
    with running(
        tmp_path_factory.mktemp("narrow"), NAGAYA_ALLOWED_HOSTS="127.0.0.1", NAGAYA_STREAMS_PER_TENANT="2"
    ) as server:
        for tenant_id in ("acme", "globex"):
            server.tenant(tenant_id, models=[model_server.model("gate")])
        yield server


@pytest.fixture
def gate(model_server: ModelServer) -> Iterator[threading.Event]:
    model_server.gate.clear()
    yield model_server.gate
    model_server.gate.set()


def open_streams(server: RunningServer) -> int:
    lines = httpx.get(f"{server.url}/metrics", timeout=30).text.splitlines()
    return round(float(next(line.split()[1] for line in lines if line.startswith("nagaya_open_streams "))))


def until(check: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < deadline_s, "it did not come to pass"
        time.sleep(0.05)


def test_a_tenants_streams_are_counted_bounded_and_given_back(narrow: RunningServer, gate: threading.Event):
    acme, globex = narrow.client(narrow.key("acme")), narrow.client(narrow.key("globex"))
    with (
        acme.stream("POST", "/v1/responses", json=RESPONSE) as one,
        acme.stream("POST", "/v1/chat/completions", json=CHAT) as two,
    ):
        assert (one.status_code, two.status_code) == (200, 200)
        until(lambda: open_streams(narrow) == 2)
        background = acme.post("/v1/responses", json={**RESPONSE, "stream": False, "background": True}).json()["id"]
        for refused in (
            acme.post("/v1/responses", json=RESPONSE),
            acme.post("/v1/chat/completions", json=CHAT),
            acme.get(f"/v1/responses/{background}", params={"stream": "true"}),
        ):
            error = assert_error(refused, 429, "too_many_streams")
            assert error["type"] == "rate_limit_error"
            assert refused.headers["retry-after"]
        with globex.stream("POST", "/v1/responses", json=RESPONSE) as other:
            assert other.status_code == 200
        gate.set()
        assert sse(one.read().decode())[-1]["type"] == "response.completed"
        assert two.read().decode().rstrip().endswith("data: [DONE]")
    until(lambda: open_streams(narrow) == 0)
    for _ in range(3):
        assert acme.post("/v1/responses", json={**RESPONSE, "input": []}).status_code == 400
    assert sse(acme.post("/v1/responses", json=RESPONSE).text)[-1]["type"] == "response.completed"


def test_who_goes_away_while_following_takes_no_place(narrow: RunningServer, gate: threading.Event):
    acme = narrow.client(narrow.key("acme"))
    background = acme.post("/v1/responses", json={**RESPONSE, "stream": False, "background": True}).json()["id"]
    for _ in range(4):
        with acme.stream("GET", f"/v1/responses/{background}", params={"stream": "true"}) as reply:
            assert reply.status_code == 200
            next(reply.iter_lines())
        until(lambda: open_streams(narrow) == 0)
    gate.set()
    events = sse(acme.get(f"/v1/responses/{background}", params={"stream": "true"}).text)
    assert events[-1]["type"] == "response.completed"


@pytest.mark.parametrize(("path", "body"), [("/v1/responses", RESPONSE), ("/v1/chat/completions", CHAT)])
def test_a_stream_whose_caller_is_revoked_ends_in_the_words_of_its_api(
    narrow: RunningServer, gate: threading.Event, path: str, body: dict[str, Any]
):
    token = narrow.token("globex", "rin")
    with narrow.client(token).stream("POST", path, json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        narrow.operate("POST", "/admin/tenants/globex/revocations", {"user": "rin"})
        events = sse("\n".join(lines))
    if path == "/v1/responses":
        last = ResponseErrorEvent.model_validate(events[-1])
        assert last.code == "session_closed"
        assert not last.model_extra
        numbers = [event["sequence_number"] for event in events]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    else:
        assert events[-1]["error"]["code"] == "session_closed"
        assert set(events[-1]) == {"error"}
