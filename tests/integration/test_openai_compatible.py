"""The OpenAI-compatible adapter against a real server over a socket: what it sends, every failure, cancellation, egress."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterator, Sequence

import httpcore2
import httpx2
import pytest

from nagaya.errors import (
    AddressRefused,
    AnswerCut,
    AnswerNotUnderstood,
    ContentFiltered,
    ContextTooLong,
    ModelAddressWrong,
    ModelRateLimited,
    ModelRefusedKey,
    ModelRefusedRequest,
    ModelUnreachable,
    NagayaError,
)
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.driver import FunctionTool, ModelRequest, TextDelta, ToolCall, Turn
from nagaya.models.model import Embeddings, Model
from nagaya.models.openai_compatible import (
    OpenAICompatibleEmbeddings,
    OpenAICompatibleModel,
    OpenAIConnection,
    chat_body,
)
from parts.chat_server import ANSWER, KEY, ChatServer, running

SECRET_WORDS = "my diagnosis is private"
ASK = ModelRequest((Turn("user", SECRET_WORDS),))


@pytest.fixture(scope="module")
def running_server() -> Iterator[ChatServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(running_server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> ChatServer:
    running_server.reset()
    monkeypatch.setattr("nagaya.models.openai_errors.PAUSE_FIRST_S", 0.01)
    return running_server


@pytest.fixture
async def connection(server: ChatServer) -> AsyncIterator[OpenAIConnection]:
    connection = OpenAIConnection(server.url, KEY, policy=EgressPolicy(["127.0.0.1"]), read_s=10.0)
    yield connection
    await connection.close()


def model(connection: OpenAIConnection, name: str, deadline_s: float = 10.0) -> Model:
    return Model(OpenAICompatibleModel(connection, name), deadline_s=deadline_s)


async def test_an_answer_arrives_whole_with_the_vendors_usage(connection: OpenAIConnection) -> None:
    answer = await model(connection, "good").complete(ASK)
    assert answer.text == ANSWER
    usage = answer.finished.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.reasoning_tokens, usage.estimated) == (40, 8, 2, False)
    assert answer.finished.model == "served"


async def test_what_is_asked_is_what_is_sent(connection: OpenAIConnection, server: ChatServer) -> None:
    request = ModelRequest(
        turns=(
            Turn("developer", "Be brief."),
            Turn("user", "See:", images=("data:image/png;base64,AAAA",)),
            Turn("user", "", images=("https://x.example/a.png",)),
            Turn("assistant", "", tool_calls=(ToolCall("c1", "look_up", "{}"),)),
            Turn("tool", "red", tool_call_id="c1"),
        ),
        tools=(FunctionTool("look_up", "Looks.", {"type": "object"}, strict=True), FunctionTool("bare")),
        tool_choice={"type": "function", "name": "look_up"},
        parallel_tool_calls=False,
        temperature=0.0,
        top_p=0.5,
        max_output_tokens=100,
        stop=("END",),
        seed=7,
        response_format={"type": "json_schema", "name": "n", "schema": {}},
        reasoning_effort="low",
        user="u1",
    )
    await model(connection, "good").complete(request)
    headers, body = server.seen[-1]
    assert body == {
        "model": "good",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "See:"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}},
            ]},
            {"role": "tool", "content": "red", "tool_call_id": "c1"},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [
            {"type": "function", "function": {
                "name": "look_up", "description": "Looks.", "parameters": {"type": "object"}, "strict": True,
            }},
            {"type": "function", "function": {"name": "bare"}},
        ],
        "tool_choice": {"type": "function", "function": {"name": "look_up"}},
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "top_p": 0.5,
        "max_tokens": 100,
        "stop": ["END"],
        "seed": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        "reasoning_effort": "low",
        "user": "u1",
    }  # fmt: skip
    assert headers["authorization"] == f"Bearer {KEY}"


def test_openais_own_service_gets_its_newer_names() -> None:
    body = chat_body(ModelRequest((Turn("developer", "x"),), max_output_tokens=5), "gpt-5", "openai")
    assert body["max_completion_tokens"] == 5
    assert "max_tokens" not in body
    assert body["messages"][0]["role"] == "developer"


async def test_nothing_of_the_servers_own_environment_reaches_a_tenants_vendor(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET"):
        monkeypatch.setenv(name, "operators-own")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Operator: operators-own\nAuthorization: Bearer operators-own")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/operators-own")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    for key, name in ((KEY, "good"), (None, "keyless")):
        connection = OpenAIConnection(server.url, key, policy=EgressPolicy(["127.0.0.1"]))
        await model(connection, name).complete(ASK)
        await connection.close()
        headers, _ = server.seen[-1]
        assert "operators-own" not in str(headers)
        assert ("authorization" in headers) is (key is not None)
        assert not [header for header in headers if header.startswith(("x-stainless", "openai-"))]


def test_a_key_is_not_shown_by_its_connection() -> None:
    assert KEY not in repr(OpenAIConnection("http://x", KEY, policy=EgressPolicy()))


@pytest.mark.parametrize(
    ("name", "error", "hits"),
    [
        ("limited", ModelRateLimited, 1),
        ("broke", ModelRateLimited, 1),
        ("down", ModelUnreachable, 3),
        ("long", ContextTooLong, 1),
        ("long-uncoded", ContextTooLong, 1),
        ("huge", ContextTooLong, 1),
        ("filtered", ContentFiltered, 1),
        ("refused", ModelRefusedRequest, 1),
        ("forbidden", ModelRefusedKey, 1),
        ("absent", ModelAddressWrong, 1),
        ("teapot", ModelRefusedRequest, 1),
        ("redirect", ModelAddressWrong, 1),
        ("busy", ModelUnreachable, 3),
        ("flood", AnswerNotUnderstood, 1),
        ("zipped", AnswerNotUnderstood, 1),
        ("endless-line", AnswerNotUnderstood, 1),
        ("limited-midway", ModelRateLimited, 1),
        ("cut", AnswerCut, 1),
        ("no-end", AnswerCut, 1),
        ("error-midway", AnswerCut, 1),
        ("garbage", AnswerNotUnderstood, 1),
        ("not-chat", AnswerNotUnderstood, 1),
    ],
)
async def test_every_failure_has_its_own_error_and_repeats_no_word(
    name: str, error: type[NagayaError], hits: int, connection: OpenAIConnection, server: ChatServer
) -> None:
    with pytest.raises(NagayaError) as raised:
        await model(connection, name).complete(ASK)
    assert type(raised.value) is error
    assert raised.value.__cause__ is None
    for text in (raised.value.message("en"), raised.value.message("ja")):
        assert SECRET_WORDS not in text
        assert KEY not in text
    assert server.hits == hits
    assert raised.value.retry_after_s == (90 if name == "limited" else None)


async def test_a_wrong_key_is_named_as_such_and_not_repeated(server: ChatServer) -> None:
    connection = OpenAIConnection(server.url, "sk-wrong", policy=EgressPolicy(["127.0.0.1"]))
    with pytest.raises(ModelRefusedKey) as raised:
        await model(connection, "good").complete(ASK)
    assert "sk-wrong" not in str(raised.value)
    await connection.close()


async def test_a_key_pasted_with_a_line_end_works(server: ChatServer) -> None:
    connection = OpenAIConnection(server.url, f" {KEY}\r\n", policy=EgressPolicy(["127.0.0.1"]))
    assert (await model(connection, "good").complete(ASK)).text == ANSWER
    await connection.close()


@pytest.mark.parametrize("key", ["sk-a\r\nX-Evil: 1", "sk a", "鍵", "sk-\0"])
async def test_a_key_that_cannot_stand_in_a_header_is_refused_unsent(key: str, server: ChatServer) -> None:
    connection = OpenAIConnection(server.url, key, policy=EgressPolicy(["127.0.0.1"]))
    with pytest.raises(ModelRefusedKey):
        await model(connection, "good").complete(ASK)
    assert server.hits == 0


@pytest.mark.parametrize("name", ["limited-once", "down-once"])
async def test_a_short_outage_is_asked_again_before_the_answer_begins(
    name: str, connection: OpenAIConnection, server: ChatServer
) -> None:
    assert (await model(connection, name).complete(ASK)).text == ANSWER
    assert server.hits == 2


async def test_a_content_filter_midway_ends_the_answer_and_says_so(connection: OpenAIConnection) -> None:
    answer = await model(connection, "filters-midway").complete(ASK)
    assert answer.finished.reason == "content_filter"
    assert answer.text


async def test_usage_that_the_server_does_not_send_is_estimated(connection: OpenAIConnection) -> None:
    usage = (await model(connection, "no-usage").complete(ASK)).finished.usage
    assert usage.estimated
    assert usage.output_tokens > 10


async def test_a_call_that_the_server_ends_with_stop_is_still_a_call(connection: OpenAIConnection) -> None:
    request = ModelRequest(ASK.turns, tools=(FunctionTool("look_up"),), tool_choice="required")
    answer = await model(connection, "says-stop").complete(request)
    assert answer.tool_calls == (ToolCall("call_9", "look_up", '{"q":"roof"}'),)
    assert answer.finished.reason == "tool_calls"


@pytest.mark.parametrize("name", ["silent", "hang"])
async def test_a_server_that_falls_silent_is_given_up_in_time_and_let_go(
    name: str, connection: OpenAIConnection, server: ChatServer
) -> None:
    await model(connection, "good").complete(ASK)
    with pytest.raises(ModelUnreachable):
        async with asyncio.timeout(60):
            await model(connection, name, deadline_s=0.3).complete(ASK)
    # The server itself would have been silent for ever: it was let go.
    await until(lambda: server.open_streams == 0)


async def test_closing_the_stream_closes_the_http_stream(connection: OpenAIConnection, server: ChatServer) -> None:
    before = asyncio.all_tasks()
    stream = model(connection, "hang").stream(ASK)
    assert isinstance(await anext(stream), TextDelta)
    assert server.open_streams == 1
    await stream.aclose()
    await until(lambda: server.open_streams == 0)
    assert server.abandoned == 1
    await until(lambda: asyncio.all_tasks() <= before)


@pytest.mark.parametrize("name", ["silent", "hang"])
async def test_cancelling_the_reader_closes_the_http_stream(
    name: str, connection: OpenAIConnection, server: ChatServer
) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(model(connection, name).complete(ASK))
    await until(lambda: server.open_streams == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.open_streams == 0)
    await until(lambda: asyncio.all_tasks() <= before)


async def test_a_connection_is_used_again(connection: OpenAIConnection, server: ChatServer) -> None:
    for _ in range(3):
        await model(connection, "good").complete(ASK)
    client = await connection.client()
    assert client is await connection.client()
    assert server.hits == 3


async def test_callers_at_once_share_one_client(server: ChatServer) -> None:
    connection = OpenAIConnection(server.url, KEY, policy=EgressPolicy(["127.0.0.1"]))
    clients = await asyncio.gather(*(connection.client() for _ in range(5)))
    assert len(set(map(id, clients))) == 1
    await connection.close()
    await connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "[::ffff:127.0.0.1]", "0x7f.1"])
async def test_a_url_that_points_inside_is_never_connected_to(host: str, server: ChatServer) -> None:
    connection = OpenAIConnection(f"http://{host}:{server.port}/v1", KEY, policy=EgressPolicy())
    with pytest.raises(AddressRefused):
        await model(connection, "good").complete(ASK)
    with pytest.raises(AddressRefused):
        await Embeddings(OpenAICompatibleEmbeddings(connection, "m", dimensions=4)).embed(["x"])
    assert server.hits == 0
    await connection.close()


async def test_a_redirect_inside_is_not_followed(connection: OpenAIConnection, server: ChatServer) -> None:
    with pytest.raises(ModelAddressWrong):
        await model(connection, "redirect").complete(ASK)
    assert server.hits == 1


async def test_a_name_that_is_rebound_after_the_check_is_checked_again(server: ChatServer) -> None:
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def resolver(host: str, port: int) -> Sequence[str]:
        return next(answers)

    policy = EgressPolicy(resolver=resolver)
    assert await policy.addresses("models.example", server.port)
    connection = OpenAIConnection(f"http://models.example:{server.port}/v1", KEY, policy=policy)
    with pytest.raises(AddressRefused):
        await model(connection, "good").complete(ASK)
    assert server.hits == 0
    await connection.close()


async def test_the_connection_goes_to_an_address_that_was_checked(server: ChatServer) -> None:
    asked: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        # The first address answers nothing; the next one is tried, without another look-up.
        return ["127.0.0.254", "127.0.0.1"]

    policy = EgressPolicy(["models.example"], resolver=resolver)
    connection = OpenAIConnection(f"http://models.example:{server.port}/v1", KEY, policy=policy)
    assert (await model(connection, "good").complete(ASK)).text == ANSWER
    assert asked == ["models.example"]
    assert server.seen[-1][0]["host"] == f"models.example:{server.port}"
    await connection.close()


@pytest.mark.parametrize("problem", [TimeoutError(), OSError("no such name")])
async def test_a_name_that_does_not_resolve_means_unreachable(problem: Exception) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        raise problem

    connection = OpenAIConnection("http://models.example/v1", KEY, policy=EgressPolicy(resolver=resolver))
    with pytest.raises(ModelUnreachable):
        await model(connection, "good").complete(ASK)
    await connection.close()


async def test_embeddings_come_in_order_as_unit_vectors(connection: OpenAIConnection, server: ChatServer) -> None:
    embeddings = OpenAICompatibleEmbeddings(connection, "small", dimensions=4)
    vectors, tokens = await Embeddings(embeddings).embed(["x" * (at % 7) for at in range(300)])
    assert tokens == sum(at % 7 for at in range(300))
    assert server.hits == 2
    assert vectors[0] == pytest.approx([0.6, 0.8, 0.0, 0.0])
    assert vectors[299][2] > vectors[298][2] > 0
    assert server.seen[-1][1]["encoding_format"] == "float"
    assert "dimensions" not in server.seen[-1][1]
    await embeddings.close()


async def test_embeddings_of_another_size_than_stated_are_refused(connection: OpenAIConnection) -> None:
    with pytest.raises(AnswerNotUnderstood, match="size"):
        await Embeddings(OpenAICompatibleEmbeddings(connection, "wrong-size", dimensions=4)).embed(["x"])


async def test_a_text_that_is_refused_is_not_asked_about_again(
    connection: OpenAIConnection, server: ChatServer
) -> None:
    with pytest.raises(ModelRefusedRequest):
        await Embeddings(OpenAICompatibleEmbeddings(connection, "refused", dimensions=4)).embed(["x"])
    assert server.hits == 1


async def until(holds: object, within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not holds():  # type: ignore[operator]  # a function without arguments
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.01)


async def test_while_an_answer_streams_what_was_asked_is_held_no_second_time(connection: OpenAIConnection) -> None:
    long = "what was said before. " * 5_000
    gc.collect()
    stream = model(connection, "good").stream(ModelRequest((Turn("user", long),)))
    assert isinstance(await anext(stream), TextDelta)
    sent = [held for held in gc.get_objects() if isinstance(held, httpcore2.Request | httpx2.Request)]
    assert sent
    for request in sent:
        assert KEY.encode() not in b"".join(value for _, value in getattr(request.headers, "raw", request.headers))
        assert [part async for part in request.stream] == [b""]
    await stream.aclose()
