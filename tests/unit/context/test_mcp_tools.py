"""MCP tools of a tenant's own: listed, called, approved; and servers that fail, lie, flood, hang or point inside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nagaya.context import server_tools
from nagaya.context.items import Message
from nagaya.context.response_shapes import ResponseIn
from nagaya.context.tool_items import McpApprovalRequest, McpCall, McpListTools
from nagaya.errors import AddressRefused, InvalidValue, NotFound
from nagaya.kernel.egress import EgressPolicy
from nagaya.models import mcp_client
from nagaya.models.mcp_client import McpServer
from nagaya.models.tool_server import Address
from nagaya.testing.models import call, say
from support.inside import inside
from support.mcp_server import POISON, ToolsServer, running_tools

WEATHER = call("roofs__weather", '{"city":"Nara"}')
ORDER = call("roofs__order", '{"thing":"tiles"}')


@pytest.fixture(scope="module")
def running() -> Iterator[ToolsServer]:
    with running_tools() as server:
        yield server


@pytest.fixture
def tools(running: ToolsServer) -> ToolsServer:
    running.called.clear()
    running.credentials.clear()
    return running


def opened(folder: Path, monkeypatch, tools: ToolsServer, *scripts):
    return inside(folder, monkeypatch, *scripts, allowed_hosts=(tools.place,))


async def test_the_model_calls_a_tool_of_the_tenants_server(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, WEATHER, say("Rain.")) as house, house.as_user() as tenant:
        run = await tenant.responses.begin(ResponseIn(input="Weather?", tools=[tools.tool()]))
        told = []
        while (event := await run.next()) is not None:
            told.append(event)
        listed, called, said = run.response.output
        assert isinstance(listed, McpListTools)
        assert {tool.name for tool in listed.tools} >= {"weather", "order"}
        assert isinstance(called, McpCall)
        assert (called.name, called.output, called.status) == ("weather", "Rain in Nara.", "completed")
        assert isinstance(said, Message)
        assert tools.called == [("weather", "Nara")]
        assert house.model.requests[1].turns[-1].text == "Rain in Nara."
        types = [event.type for event in told]
        assert [each for each in types if "mcp" in each] == [
            "response.mcp_list_tools.in_progress", "response.mcp_list_tools.completed",
            "response.mcp_call.in_progress", "response.mcp_call_arguments.delta", "response.mcp_call_arguments.done",
            "response.mcp_call.completed",
        ]  # fmt: skip
        assert [event async for event in tenant.responses.follow(run.response.id)] == told


async def test_what_was_called_is_in_the_next_questions_context(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, WEATHER, say("Rain."), say("Yes.")) as house:
        async with house.as_user() as tenant:
            first = await tenant.responses.create(ResponseIn(input="Weather?", tools=[tools.tool()]))
            given = ResponseIn(input="Sure?", previous_response_id=first.id, tools=[tools.tool()])
            await tenant.responses.create(given)
        turns = house.model.requests[2].turns
        assert [turn.tool_calls[0].name for turn in turns if turn.tool_calls] == ["roofs__weather"]
        assert "Rain in Nara." in [turn.text for turn in turns]


async def test_credentials_reach_the_server_and_nothing_else(tmp_path: Path, monkeypatch, tools, caplog):
    secret = "canary-credential"
    caplog.set_level("DEBUG")
    async with opened(tmp_path, monkeypatch, tools, WEATHER, say("Rain.")) as house, house.as_user() as tenant:
        given = ResponseIn(input="Weather?", tools=[tools.tool(authorization=secret)])
        answer = await tenant.responses.create(given)
        assert set(tools.credentials) == {f"Bearer {secret}"}
        assert secret.encode() not in msgspec.json.encode(answer)
        assert secret.encode() not in await tenant.responses.retrieve_wire(answer.id)
        assert secret not in repr(house.model.requests)
    assert secret not in caplog.text


async def test_only_allowed_tools_are_offered(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, say("Hello.")) as house, house.as_user() as tenant:
        for allowed in (["weather"], {"read_only": True}, {"tool_names": ["weather"]}):
            await tenant.responses.create(ResponseIn(input="Hi", tools=[tools.tool(allowed_tools=allowed)]))
            assert [tool.name for tool in house.model.requests[-1].tools] == ["roofs__weather"]


async def test_a_call_waits_for_its_approval_and_is_then_made_once(tmp_path: Path, monkeypatch, tools: ToolsServer):
    asking = tools.tool(require_approval={"never": {"tool_names": ["weather"]}})
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered."), say("Again?")) as house:
        async with house.as_user() as tenant:
            first = await tenant.responses.create(ResponseIn(input="Order tiles", tools=[asking]))
            request = first.output[-1]
            assert isinstance(request, McpApprovalRequest)
            assert (request.name, request.arguments) == ("order", '{"thing":"tiles"}')
            assert tools.called == []
            answer = {"type": "mcp_approval_response", "approval_request_id": request.id, "approve": True}
            given = {"input": [answer], "previous_response_id": first.id, "tools": [asking]}
            second = await tenant.responses.create(msgspec.convert(given, ResponseIn))
            made = next(item for item in second.output if isinstance(item, McpCall))
            assert (made.approval_request_id, made.output) == (request.id, "Ordered tiles.")
            assert tools.called == [("order", "tiles")]
            with pytest.raises(InvalidValue, match="answered before"):
                again = {**given, "previous_response_id": second.id}
                await tenant.responses.create(msgspec.convert(again, ResponseIn))
        assert house.model.requests[1].turns[-1].text == "Ordered tiles."


async def test_in_a_conversation_a_call_that_was_declined_is_told_to_the_model(tmp_path: Path, monkeypatch, tools):
    asking = tools.tool(require_approval="always")
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("I did not.")) as house, house.as_user() as tenant:
        chat = await tenant.conversations.create()
        first = await tenant.responses.create(ResponseIn(input="Order", conversation=chat.id, tools=[asking]))
        answer = {
            "type": "mcp_approval_response", "approval_request_id": first.output[-1].id, "approve": False,
            "reason": "too dear",
        }  # fmt: skip
        given = {"input": [answer], "conversation": chat.id, "tools": [asking]}
        await tenant.responses.create(msgspec.convert(given, ResponseIn))
        assert tools.called == []
        told = house.model.requests[1].turns[-1].text
        assert "did not approve" in told
        assert "too dear" in told


async def test_an_approval_of_what_was_never_asked_is_refused(tmp_path: Path, monkeypatch, tools: ToolsServer):
    asking = tools.tool(require_approval="always")
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("No.")) as house:
        async with house.as_user() as tenant:
            first = await tenant.responses.create(ResponseIn(input="Order", tools=[asking]))
            answer = {"type": "mcp_approval_response", "approval_request_id": first.output[-1].id, "approve": True}
            with pytest.raises(NotFound):
                await tenant.responses.create(msgspec.convert({"input": [answer], "tools": [asking]}, ResponseIn))
        async with house.as_user("ren") as other:
            given = {"input": [answer], "tools": [asking], "previous_response_id": first.id}
            with pytest.raises(NotFound):
                await other.responses.create(msgspec.convert(given, ResponseIn))
        assert tools.called == []


async def test_a_tool_that_fails_is_told_to_the_model(tmp_path: Path, monkeypatch, tools: ToolsServer):
    script = call("roofs__fails", '{"why":"no tiles left"}')
    async with opened(tmp_path, monkeypatch, tools, script, say("Sorry.")) as house, house.as_user() as tenant:
        answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool()]))
        assert (answer.status, answer.output[1].status) == ("completed", "failed")
        assert house.model.requests[1].turns[-1].text.startswith("Error: ")


async def test_long_outputs_are_cut(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, call("roofs__huge", "{}"), say("Much.")) as house:
        async with house.as_user() as tenant:
            answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool()]))
        assert len(answer.output[1].output) == 100_000


async def test_a_tool_that_hangs_fails_in_its_time(tmp_path: Path, monkeypatch, tools: ToolsServer):
    monkeypatch.setattr(server_tools, "TOOL_S", 0.5)
    async with opened(tmp_path, monkeypatch, tools, call("roofs__slow", "{}"), say("Late.")) as house:
        async with house.as_user() as tenant:
            answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool()]))
        assert (answer.status, answer.output[1].status) == ("completed", "failed")


@pytest.mark.parametrize(("path", "said"), [
    ("/refuses", "credential"), ("/lies", "protocol"), ("/floods", "too long"), ("/many/mcp", "too many tools"),
    ("/hangs", "in time"), ("/nowhere", "failed"),
])  # fmt: skip
async def test_a_server_that_misbehaves_fails_to_list_and_the_answer_goes_on(
    tmp_path: Path, monkeypatch, tools: ToolsServer, path: str, said: str
):
    monkeypatch.setattr(mcp_client, "LIST_S", 1.0 if path == "/hangs" else 30.0)
    async with opened(tmp_path, monkeypatch, tools, say("Without tools.")) as house, house.as_user() as tenant:
        answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool(path)]))
        listed = answer.output[0]
        assert isinstance(listed, McpListTools)
        assert said in (listed.error or "")
        assert (listed.tools, answer.status) == ([], "completed")


async def test_row_29_a_redirect_inside_is_not_followed(tmp_path: Path, monkeypatch, tools: ToolsServer):
    with running_tools() as inner:
        tools.elsewhere = f"http://{inner.place}/inside"
        async with opened(tmp_path, monkeypatch, tools, say("No tools.")) as house, house.as_user() as tenant:
            answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool("/redirects")]))
            assert "redirects" in (answer.output[0].error or "")
        assert inner.inside_hits == 0


@pytest.mark.parametrize("url", [
    "http://127.0.0.1:1/mcp", "https://localhost/mcp", "https://169.254.169.254/latest", "https://10.0.0.1/mcp",
    "https://[::1]/mcp", "https://0x7f.1/mcp", "https://metadata.google.internal/",
])  # fmt: skip
async def test_row_29_an_address_inside_is_refused_before_anything_is_asked(tmp_path: Path, monkeypatch, tools, url):
    async with opened(tmp_path, monkeypatch, tools) as house, house.as_user() as tenant:
        with pytest.raises(AddressRefused):
            await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool(server_url=url)]))
        assert house.model.requests == []


async def test_row_29_a_name_that_resolves_inside_is_refused_at_the_connection(tools: ToolsServer):
    async def inwards(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    url = f"http://tools.example:{tools.port}/good/mcp"
    server = McpServer(Address(url, "tools.example", tools.port), EgressPolicy(resolver=inwards))
    with pytest.raises(AddressRefused):
        await server.tools()
    await server.close()
    assert tools.credentials == []


@pytest.mark.parametrize("changes", [
    {"server_url": "http://tools.example/mcp"}, {"server_url": "https://u:p@tools.example/"}, {"server_url": "x"},
    {"server_url": None}, {"server_label": "a b"}, {"server_label": "a__b"}, {"headers": {"Host": "x"}},
    {"headers": {"x": "a\r\nb"}}, {"require_approval": "sometimes"}, {"unknown": 1},
])  # fmt: skip
async def test_what_it_does_not_understand_is_refused(tmp_path: Path, monkeypatch, tools: ToolsServer, changes):
    async with opened(tmp_path, monkeypatch, tools) as house, house.as_user() as tenant:
        with pytest.raises(Exception) as refused:
            await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool(**changes)]))
        assert getattr(refused.value, "status", None) == 400


async def test_row_21_a_servers_words_are_data(tmp_path: Path, monkeypatch, tools: ToolsServer):
    """The model obeys the poisoned output and asks for another tenant's tool: nobody answers but the client."""
    scripts = [call("roofs__poison", "{}"), call("globex__read_all", "{}")]
    async with opened(tmp_path, monkeypatch, tools, *scripts) as house:
        await house.nagaya.tenants.create("globex", name="Globex")
        entrance = await house.nagaya.enter(await house.nagaya.tenants.mint("globex", "mio"))
        async with house.nagaya.session(entrance) as other:
            theirs = await other.conversations.create(title="canary of globex")
        async with house.as_user() as tenant:
            answer = await tenant.responses.create(ResponseIn(input="Go", tools=[tools.tool()]))
            assert POISON in [item.output for item in answer.output if isinstance(item, McpCall)]
            # An unknown function is shown to the client as a call of its own; the server does nothing.
            assert answer.output[-1].name == "globex__read_all"
            with pytest.raises(NotFound):
                await tenant.conversations.items(theirs.id)
            assert "canary" not in repr(house.model.requests)
        offered = {tool.name for tool in house.model.requests[-1].tools}
        assert all(name.startswith("roofs__") for name in offered)
        async with house.nagaya.session(entrance) as other:
            await other.responses.create(ResponseIn(input="Hi"))
        assert house.model.requests[-1].tools == ()
        assert tools.called == [("poison", "")]


async def test_the_connection_ends_with_the_run(tmp_path: Path, monkeypatch, tools: ToolsServer):
    made: list[McpServer] = []

    class Kept(McpServer):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(mcp_client, "McpServer", Kept)
    scripts = [WEATHER, WEATHER, say("Rain.")]
    async with opened(tmp_path, monkeypatch, tools, *scripts) as house, house.as_user() as tenant:
        await tenant.responses.create(ResponseIn(input="Weather?", tools=[tools.tool()]))
    (server,) = made
    assert server._owner is None
    assert tools.called == [("weather", "Nara")] * 2
