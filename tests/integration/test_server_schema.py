"""schemathesis over the server's own OpenAPI document: whatever it makes up, the server does not fail."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from support.planted import said
from support.server import RunningServer, running

EXAMPLES = 12
BUDGET_S = 240.0
"""Half a second for an operation, many times over on a busy machine."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running(tmp_path_factory.mktemp("fuzzed")) as server:
        server.tenant("fuzzed-one")
        server.tenant("fuzzed-one/inner", admin="mio")
        yield server


def test_no_made_up_request_fails_the_server(fuzzed: RunningServer):
    key = fuzzed.key("fuzzed-one", "mio", "tenant_admin")
    document = httpx.get(f"{fuzzed.url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    client = fuzzed.client()
    known = _things(fuzzed.client(key))
    began_s, asked, paths = time.monotonic(), 0, set()
    statuses: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path == "/v1/events":
            # Its answer does not end; tests/security/test_row_19_events.py reads it.
            paths.add((operation.method, operation.path))
            continue
        # The fuzzed tenant must live on, and so must its keys.
        deadly = operation.method == "delete" or operation.path.endswith(("/suspend", "/revoke", "/revocations"))
        if time.monotonic() - began_s > BUDGET_S:
            pytest.fail(f"only {len(paths)} of the operations were tried in {BUDGET_S} s")

        @seed(20)
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy() | _negative(operation), wrong_key=st.integers(0, 7), real=st.booleans())
        def ask(case, wrong_key, real):
            nonlocal asked
            as_operator = case.path.startswith("/admin") != (wrong_key == 0)
            if real and case.path_parameters:
                case.path_parameters = {name: known.get(name, given) for name, given in case.path_parameters.items()}
            case.headers = {
                **(case.headers or {}),
                "Authorization": f"Bearer {fuzzed.operator_key if as_operator else key}",
            }
            if deadly and as_operator:  # noqa: B023 - called in this very turn of the loop
                case.path_parameters = {**case.path_parameters, "id": "nobody-here"}
            prepared = case.as_transport_kwargs(base_url=fuzzed.url)
            reply = _send(client, prepared)
            if reply is None:
                return
            asked += 1
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
            assert reply.status_code < 500, (case.method, case.path, prepared, reply.text)
            assert reply.headers["x-request-id"]
            if case.path == "/mcp" and not reply.is_success:
                assert reply.json()["jsonrpc"] == "2.0"
                assert set(reply.json()["error"]) <= {"code", "message", "data"}
            elif not reply.is_success:
                assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

        ask()
        paths.add((operation.method, operation.path))
    declared = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert paths == declared
    assert asked > 5 * len(paths)
    assert statuses.get(200, 0) > 10
    assert [line for line in fuzzed.log().splitlines() if "http.failed" in line or "Traceback" in line] == []
    print(f"{asked} requests to {len(paths)} operations in {time.monotonic() - began_s:.1f} s: {statuses}")


def _things(caller: httpx.Client) -> dict[str, str]:
    """Ids that exist, so that not every made-up path ends in a 404."""
    conversation = caller.post("/v1/conversations", json={"items": [said("here")]}).json()["id"]
    item = caller.get(f"/v1/conversations/{conversation}/items").json()["first_id"]
    response = caller.post("/v1/responses", json={"input": "here"}).json()["id"]
    file = caller.post("/v1/files", files={"file": ("a.txt", b"here")}, data={"purpose": "vision"}).json()["id"]
    return {
        "file_id": file,
        "id": "fuzzed-one",
        "conversation_id": conversation,
        "item_id": item,
        "response_id": response,
    } | {"workspace": "inner"}


def _negative(operation):
    return operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)


def _send(client: httpx.Client, prepared: dict) -> httpx.Response | None:
    wanted = {
        key: prepared[key] for key in ("method", "url", "headers", "params", "json", "data", "files") if key in prepared
    }
    if "data" in wanted:
        wanted["content"] = wanted.pop("data")
    if isinstance(wanted.get("content"), dict):
        wanted["data"] = wanted.pop("content")
    try:
        return client.request(**wanted)
    except (httpx.LocalProtocolError, httpx.InvalidURL, UnicodeEncodeError, TypeError, ValueError, AttributeError):
        # What cannot be put on the wire by a client; raw sockets do that in test_server_bad_input.
        return None


def test_the_document_is_whole(fuzzed: RunningServer):
    document = httpx.get(f"{fuzzed.url}/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["responses"], (method, path)
            assert operation["operationId"]
    assert Path("/v1/responses").as_posix() in document["paths"]
