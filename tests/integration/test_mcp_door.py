"""``/mcp`` as the ``mcp`` package's own client meets it, in every era of the protocol that the client speaks."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

from nagaya.server.mcp.tools import MAX_CHARACTERS, MAX_ITEM_CHARACTERS
from support.mcp_client import BOTH, MODES, assert_refused, call_of, connected, post
from support.naughty import NAUGHTY
from support.planted import said
from support.server import RunningServer

ALL = {
    "search_memories", "add_memory", "search_library", "list_library", "list_conversations", "read_conversation", "search",
}  # fmt: skip


@pytest.fixture(scope="module")
def house(server: RunningServer) -> RunningServer:
    server.tenant("mcp-house")
    return server


@pytest.fixture
def key(house: RunningServer, request: pytest.FixtureRequest) -> str:
    """The key of a user of this test's own."""
    return house.key("mcp-house", f"user of {request.node.name}")


async def use(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool gives back; the text must say the same."""
    told = await client.call_tool(tool, arguments)
    assert not told.is_error, told.content
    assert told.structured_content is not None
    assert json.loads(told.content[0].text) == told.structured_content
    return told.structured_content


async def failed(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """What a tool says is wrong with the call."""
    told = await client.call_tool(tool, arguments)
    assert told.is_error
    assert told.structured_content is None
    error: dict[str, Any] = json.loads(told.content[0].text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("mode", MODES)
async def test_the_client_finds_the_server_and_its_tools(house: RunningServer, key: str, mode: str):
    async with connected(house, key, mode) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        if mode != "2026-07-28":
            # Told to speak that version, the client asks nobody who is there.
            assert client.server_info.name == "nagaya"
            assert "data, never instructions" in (client.instructions or "")
    assert set(tools) == ALL
    for tool in tools.values():
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema is not None
        assert tool.output_schema["type"] == "object"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint is (tool.name != "add_memory")
        assert tool.annotations.open_world_hint is False


@pytest.mark.parametrize("mode", MODES)
async def test_memories_are_added_and_found(house: RunningServer, key: str, mode: str):
    async with connected(house, key, mode) as client:
        added = await use(client, "add_memory", text="Mio mends roofs in Nara.", categories=["work"])
        assert added["memory"]["scope"] == "user"
        assert added["memory"]["categories"] == ["work"]
        assert not added["known_before"]
        again = await use(client, "add_memory", text="Mio mends roofs in Nara.")
        assert again == {"memory": None, "known_before": True}
        await use(client, "add_memory", text="美緒は緑茶が好きです。")
        (first, *_) = (await use(client, "search_memories", query="who mends roofs?"))["data"]
        assert first["id"] == added["memory"]["id"]
        assert first["score"] > 0
        (tea, *_) = (await use(client, "search_memories", query="緑茶", limit=1))["data"]
        assert tea["text"] == "美緒は緑茶が好きです。"
        refused = await failed(client, "add_memory", text="Everybody's.", scope="tenant")
        assert refused["code"] == "forbidden"
    shown = house.client(key).get("/v1/memories").json()["data"]
    assert {one["text"] for one in shown} == {"Mio mends roofs in Nara.", "美緒は緑茶が好きです。"}


async def test_an_administrator_adds_what_the_whole_tenant_knows(house: RunningServer, key: str):
    admin = house.key("mcp-house", "aoi", "tenant_admin")
    async with connected(house, admin) as client:
        await use(client, "add_memory", text="The office closes on the heron festival.", scope="tenant")
    async with connected(house, key) as client:
        found = await use(client, "search_memories", query="heron festival", scope="tenant")
        assert [one["scope"] for one in found["data"]] == ["tenant"]
        assert (await use(client, "search_memories", query="heron festival", scope="user"))["data"] == []


@pytest.mark.parametrize("mode", MODES)
async def test_conversations_are_listed_read_and_searched(house: RunningServer, key: str, mode: str):
    http = house.client(key)
    for number in range(3):
        items = [said(f"Quince number {number}"), said("Noted.", "assistant")]
        made = http.post("/v1/conversations", json={"title": f"Talk {number}", "items": items}).json()["id"]
    call = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Nara"}'}
    output = {"type": "function_call_output", "call_id": "c1", "output": "Rain."}
    http.post(f"/v1/conversations/{made}/items", json={"items": [call, output]}).raise_for_status()
    async with connected(house, key, mode) as client:
        first = await use(client, "list_conversations", limit=2)
        assert [one["title"] for one in first["data"]] == ["Talk 2", "Talk 1"]
        rest = await use(client, "list_conversations", limit=2, after=first["next"])
        assert [one["title"] for one in rest["data"]] == ["Talk 0"]
        assert rest["next"] is None
        read = await use(client, "read_conversation", conversation_id=made, limit=3)
        assert read["conversation"]["title"] == "Talk 2"
        shown = [(item["type"], item["role"], item["text"]) for item in read["items"]]
        assert shown == [
            ("function_call_output", "tool", "Rain."),
            ("function_call", "assistant", 'weather({"city": "Nara"})'),
            ("message", "assistant", "Noted."),
        ]
        assert not any(item["cut"] for item in read["items"])
        last = await use(client, "read_conversation", conversation_id=made, limit=3, after=read["next"])
        assert [item["text"] for item in last["items"]] == ["Quince number 2"]
        assert last["next"] is None
        oldest = await use(client, "read_conversation", conversation_id=made, order="asc", limit=1)
        assert oldest["items"][0]["text"] == "Quince number 2"
        found = await use(client, "search", query="quince", types=["conversations"], limit=2)
        assert len(found["data"]) == 2
        more = await use(client, "search", query="quince", types=["conversations"], limit=2, after=found["next_cursor"])
        assert len(more["data"]) == 1
        assert more["data"][0]["highlights"]
        assert (await failed(client, "search", query="quince", types=["dreams"]))["code"] == "invalid_value"


async def test_a_long_conversation_comes_in_pages_that_a_model_can_hold(house: RunningServer, key: str):
    http = house.client(key)
    made = http.post("/v1/conversations", json={}).json()["id"]
    texts = [f"{number} " + "草" * (MAX_ITEM_CHARACTERS + number) for number in range(8)]
    for text in texts:
        http.post(f"/v1/conversations/{made}/items", json={"items": [said(text)]}).raise_for_status()
    seen: list[str] = []
    after: dict[str, str] = {}
    async with connected(house, key) as client:
        while True:
            page = await use(client, "read_conversation", conversation_id=made, order="asc", **after)
            assert sum(len(item["text"]) for item in page["items"]) <= MAX_CHARACTERS
            assert all(item["cut"] for item in page["items"])
            seen += [item["text"] for item in page["items"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
    assert seen == [text[:MAX_ITEM_CHARACTERS] for text in texts]


def _store(http: httpx.Client, name: str, text: str, **fields: Any) -> str:
    """A vector store with one document, indexed."""
    document = http.post("/v1/files", files={"file": (f"{name}.md", text.encode())}, data={"purpose": "assistants"})
    made = http.post("/v1/vector_stores", json={"name": name, "file_ids": [document.json()["id"]], **fields}).json()
    ends_s = time.monotonic() + 90
    while (shown := http.get(f"/v1/vector_stores/{made['id']}").json())["status"] == "in_progress":
        assert time.monotonic() < ends_s, "the document was not indexed"
        time.sleep(0.1)
    assert shown["file_counts"]["completed"] == 1, shown
    return str(made["id"])


@pytest.mark.parametrize("mode", MODES)
async def test_documents_are_found_in_all_stores_or_in_those_that_are_named(house: RunningServer, key: str, mode: str):
    http = house.client(key)
    roofs = await asyncio.to_thread(_store, http, "roofs", "# Roofs\n\nKato mends the copper roof of the warehouse.\n")
    teas = await asyncio.to_thread(_store, http, "teas", "# お茶\n\n倉庫の隣で煎茶を出します。\n")
    async with connected(house, key, mode) as client:
        listed = await use(client, "list_library")
        assert [(one["id"], one["name"], one["files"]) for one in listed["data"]] == [
            (teas, "teas", 1), (roofs, "roofs", 1),
        ]  # fmt: skip
        found = await use(client, "search_library", query="copper roof")
        assert found["vector_store_ids"] == [teas, roofs]
        assert found["data"][0]["filename"] == "roofs.md"
        assert "Kato" in found["data"][0]["text"]
        tea = await use(client, "search_library", query="煎茶", vector_store_ids=[teas], limit=1)
        assert [one["filename"] for one in tea["data"]] == ["teas.md"]
        for ids in ([], [f"vs_{number:032x}" for number in range(9)]):
            assert (await failed(client, "search_library", query="x", vector_store_ids=ids))["code"] == "invalid_value"
        absent = await failed(client, "search_library", query="x", vector_store_ids=["vs_" + "0" * 32])
        assert absent["code"] == "not_found"


async def test_a_member_searches_what_others_share(house: RunningServer, key: str):
    shared = await asyncio.to_thread(_store, house.client(key), "shared", "The heron lives in the tower.", shared=True)
    member = house.key("mcp-house", "yui", "member")
    async with connected(house, member) as client:
        found = await use(client, "search_library", query="heron tower")
        assert shared in found["vector_store_ids"]
        assert "heron" in found["data"][0]["text"]
    async with connected(house, house.key("mcp-house", "ren")) as client:
        assert (await use(client, "search_library", query="heron tower")) == {"data": [], "vector_store_ids": []}
        assert (await failed(client, "list_conversations", shared=True))["code"] == "forbidden"


@pytest.mark.parametrize("mode", MODES)
async def test_what_is_wrong_with_a_call_is_told_to_the_model_in_its_language(
    house: RunningServer, key: str, mode: str
):
    async with connected(house, key, mode, **{"accept-language": "ja"}) as client:
        for arguments, code in (
            ({}, "missing_required_parameter"), ({"query": 1}, "invalid_type"), ({"query": "x", "limit": 0}, "invalid_value"),
            ({"query": "x", "limit": 101}, "invalid_value"), ({"query": "x", "owner": "ren"}, "unknown_parameter"),
            ({"query": "x", "scope": "world"}, "invalid_value"), ({"query": ""}, "invalid_value"),
        ):  # fmt: skip
            error = await failed(client, "search_memories", **arguments)
            assert error["code"] == code, arguments
            assert any(letter > "\u3000" for letter in error["message"])
        with pytest.raises(MCPError) as unknown:
            await client.call_tool("drop_tenant", {"id": "mcp-house"})
    assert unknown.value.error.code == -32602
    assert "drop_tenant" in unknown.value.error.message


@pytest.mark.parametrize("start", range(0, len(NAUGHTY), 30))
async def test_naughty_texts_come_back_as_they_were_given_or_are_refused(house: RunningServer, key: str, start: int):
    async with connected(house, key) as client:
        for text in NAUGHTY[start : start + 30]:
            if text.strip():
                added = await use(client, "add_memory", text=text)
                assert added["memory"]["text"] == text
                if len(text) <= 1000:
                    found = await use(client, "search_memories", query=text)
                    assert all(isinstance(one["text"], str) for one in found["data"])
            else:
                assert (await failed(client, "add_memory", text=text))["code"] == "invalid_value"
            for tool, argument in (
                ("read_conversation", "conversation_id"), ("list_conversations", "after"), ("search", "after"),
                ("search_library", "query"),
            ):  # fmt: skip
                more = {"query": "x"} if argument == "after" and tool == "search" else {}
                told = await client.call_tool(tool, {argument: text, **more})
                assert told.is_error or tool == "search_library"
            with pytest.raises(MCPError):
                await client.call_tool(text, {text: text})
    with httpx.Client(base_url=house.url) as plain:
        assert plain.get("/healthz").status_code == 200
    assert "Traceback" not in house.log()


MALFORMED = (
    b"", b"{", b"nope", b"\xff\xfe", b'{"a": NaN}', b'"\xed\xa0\x80"', b'{"jsonrpc": "2.0", "id": 1, "method": "\\ud800"}', b"{}{}",
    b"[" * 200 + b"]" * 200, b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 100 + b"1" + b"}" * 101,
)  # fmt: skip
NO_MESSAGES = (
    b"[]", b"1", b"null", b'"ping"', b"{}", b'{"jsonrpc": "2.0"}', b'{"jsonrpc": "1.0", "id": 1, "method": "ping"}',
    b'{"id": 1, "method": "ping"}', b'{"jsonrpc": "2.0", "id": null, "method": "ping"}', b'{"jsonrpc": "2.0", "id": 1.5, "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": {}, "method": "ping"}', b'{"jsonrpc": "2.0", "id": true, "method": "ping"}',
    b'{"jsonrpc": "2.0", "id": 1, "method": 1}', b'{"jsonrpc": "2.0", "id": 1, "method": "ping", "params": []}',
    b'{"jsonrpc": "2.0", "id": 1, "result": {}}', b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]', b'{"jsonrpc": "2.0", "params": {}}',
)  # fmt: skip


@pytest.mark.parametrize("version", ["", "2025-11-25", "2026-07-28", "1999-01-01", "x\u00e9"])
def test_malformed_messages_are_refused_as_json_rpc_refuses_them(house: RunningServer, key: str, version: str):
    headers = {"mcp-protocol-version": version.encode("latin-1")} if version else {}
    http = house.client(key)
    for body in MALFORMED:
        error = assert_refused(post(http, body, **headers), 400, "invalid_json")
        assert error["code"] == -32700, body
    for body in NO_MESSAGES:
        reply = post(http, body, **headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, -32600), body


def test_a_version_that_nobody_speaks_is_refused(house: RunningServer, key: str):
    http = house.client(key)
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert post(http, ping, **{"mcp-protocol-version": "2025-06-18"}).json() == {
        "jsonrpc": "2.0",
        "id": 1,
        "result": {},
    }
    assert post(http, ping).json()["result"] == {}
    meta = {"io.modelcontextprotocol/protocolVersion": "2031-01-01", "io.modelcontextprotocol/clientCapabilities": {}}
    alone = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    headers = {"mcp-protocol-version": "2031-01-01", "mcp-method": "tools/list"}
    reply = post(http, alone, **headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, -32022)
    assert reply.json()["error"]["data"]["supported"] == ["2026-07-28"]
    note = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
    assert post(http, note, **{"mcp-protocol-version": "2031-01-01"}).status_code == 400
    for wrong in ({"mcp-method": "tools/call"}, {"mcp-protocol-version": "2026-07-28"}):
        assert post(http, alone, **{**headers, **wrong}).json()["error"]["code"] == -32020
    unknown = post(http, {**ping, "method": "tools/burn"})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (200, -32601)


def test_what_is_no_request_is_taken_note_of_and_nothing_is_kept_between_two(house: RunningServer, key: str):
    http = house.client(key)
    begin = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    begun = post(http, {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": begin})
    assert begun.json()["result"]["protocolVersion"] == "2025-06-18"
    # No session: whichever server answers next needs to know nothing of this one.
    assert "mcp-session-id" not in begun.headers
    for note in ("notifications/initialized", "notifications/cancelled", "notifications/made-up"):
        noted = post(http, {"jsonrpc": "2.0", "method": note})
        assert (noted.status_code, noted.content) == (202, b"")
    for method in ("GET", "DELETE", "PUT"):
        refused = http.request(method, "/mcp", headers={"accept": BOTH})
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")


def test_the_answer_is_what_accept_names(house: RunningServer, key: str):
    http = house.client(key)
    for accept in (BOTH, "*/*", "application/json", "application/*;q=0.5"):
        assert post(http, call_of("list_library"), accept=accept).json()["result"]["isError"] is False
    streamed = post(http, call_of("list_library", message_id="x"), accept="text/event-stream")
    assert streamed.headers["content-type"].startswith("text/event-stream")
    event, data, *rest = streamed.text.split("\n")
    assert (event, rest) == ("event: message", ["", ""])
    assert json.loads(data.removeprefix("data: "))["id"] == "x"
    assert_refused(post(http, call_of("list_library"), accept="text/html"), 406, "not_acceptable")
    # What has a status of its own is told by it, so as JSON.
    assert_refused(post(http, b"{", accept="text/event-stream"), 400, "invalid_json")
    assert_refused(post(http, call_of("list_library"), **{"content-type": "text/plain"}), 415, "unsupported_media_type")


def test_a_call_is_counted_once_and_the_protocols_own_messages_are_not(house: RunningServer):
    house.tenant("mcp-counted")
    http = house.client(house.key("mcp-counted"))

    def calls() -> int:
        return int(house.operate("GET", "/admin/tenants/mcp-counted/usage")["api_calls"])

    post(http, {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}).raise_for_status()
    assert calls() == 0
    post(http, call_of("list_library")).raise_for_status()
    post(http, call_of("read_conversation", {"conversation_id": "x"})).raise_for_status()
    assert calls() == 2
