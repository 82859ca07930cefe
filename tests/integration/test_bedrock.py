"""The Bedrock adapter against a Bedrock Runtime over a socket: what it sends, every failure, cancellation, accounts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from nagaya.errors import (
    AnswerCut,
    AnswerNotUnderstood,
    CloudCredentialsRefused,
    ContextTooLong,
    InvalidValue,
    ModelAddressWrong,
    ModelRateLimited,
    ModelRefusedRequest,
    ModelUnreachable,
    NagayaError,
    PermissionMissing,
    RegionRefused,
)
from nagaya.models.bedrock import BedrockModel
from nagaya.models.driver import FunctionTool, ModelRequest, TextDelta, ToolCall, Turn
from nagaya.models.model import Embeddings, Model
from nagaya.models.opening import open_embeddings, open_model
from parts.aws import point_at, surroundings
from parts.bedrock_server import ANSWER, PROMPT, BedrockServer, running

REGION = "ap-northeast-1"
ASK = ModelRequest((Turn("user", PROMPT),))
LOOK_UP = FunctionTool("look_up", "Looks.", {"type": "object", "properties": {"q": {"type": "string"}}})
EXTERNAL_ID = "nagaya-" + "e" * 43


@pytest.fixture(scope="module")
def running_server() -> Iterator[BedrockServer]:
    with running() as server:
        yield server


@pytest.fixture
def server(running_server: BedrockServer, monkeypatch: pytest.MonkeyPatch) -> BedrockServer:
    running_server.reset()
    point_at(monkeypatch, running_server.url)
    monkeypatch.setattr("nagaya.models.bedrock_errors.PAUSE_FIRST_S", 0.01)
    return running_server


class Opened:
    """Models of one test, closed at its end."""

    def __init__(self) -> None:
        self.models: list[Model] = []

    async def __call__(self, model: str, deadline_s: float = 10.0, **given: Any) -> Model:
        driver = await open_model(f"bedrock://{REGION}/{model}", surroundings(**given), api_key=None)
        self.models.append(Model(driver, deadline_s=deadline_s))
        return self.models[-1]


@pytest.fixture
async def opened(server: BedrockServer) -> AsyncIterator[Opened]:
    opened = Opened()
    yield opened
    for model in opened.models:
        await model.close()
        await model.close()


def connection_secrets() -> dict[str, bytes]:
    role = {"role_arn": "arn:aws:iam::123456789012:role/Nagaya", "external_id": EXTERNAL_ID}
    return {"aws-connection": json.dumps(role).encode()}


async def test_an_answer_arrives_whole_with_the_vendors_usage(opened: Opened) -> None:
    model = await opened("good.model-v1:0")
    answer = await model.complete(ASK)
    assert answer.text == ANSWER
    usage = answer.finished.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.estimated) == (40, 8, 5, False)
    assert answer.finished.model == model.name == "good.model-v1:0"
    assert answer.finished.reason == "stop"


async def test_what_is_asked_is_what_is_sent(opened: Opened, server: BedrockServer) -> None:
    request = ModelRequest(
        turns=(
            Turn("system", "Be brief."),
            Turn("user", "See:", images=("data:image/png;base64,AAAA",)),
            Turn("assistant", "", tool_calls=(ToolCall("c1", "look_up", '{"q":"roof"}'),)),
            Turn("tool", "red", tool_call_id="c1"),
        ),
        tools=(LOOK_UP,),
        temperature=0.5,
        max_output_tokens=100,
        stop=("END",),
    )
    await (await opened("good")).complete(request)
    path, headers, body = server.seen[-1]
    assert path == "/model/good/converse-stream"
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
    assert body == {
        "messages": [
            {"role": "user", "content": [
                {"text": "See:"}, {"image": {"format": "png", "source": {"bytes": "AAAA"}}},
            ]},
            {"role": "assistant", "content": [
                {"toolUse": {"toolUseId": "c1", "name": "look_up", "input": {"q": "roof"}}},
            ]},
            {"role": "user", "content": [{"toolResult": {"toolUseId": "c1", "content": [{"text": "red"}]}}]},
        ],
        "system": [{"text": "Be brief."}],
        "inferenceConfig": {"maxTokens": 100, "temperature": 0.5, "stopSequences": ["END"]},
        "toolConfig": {"tools": [{"toolSpec": {
            "name": "look_up", "description": "Looks.", "inputSchema": {"json": LOOK_UP.parameters},
        }}]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "error", "hits"),
    [
        ("throttled", ModelRateLimited, 3),
        ("throttled-long", ModelRateLimited, 1),
        ("quota", ModelRateLimited, 3),
        ("long", ContextTooLong, 1),
        ("long-prompt", ContextTooLong, 1),
        ("huge", ContextTooLong, 1),
        ("refused", ModelRefusedRequest, 1),
        ("oddly", ModelRefusedRequest, 1),
        ("unknown", ModelAddressWrong, 1),
        ("on-demand", ModelAddressWrong, 1),
        ("absent", ModelAddressWrong, 1),
        ("denied", PermissionMissing, 1),
        ("not-granted", PermissionMissing, 1),
        ("expired", CloudCredentialsRefused, 1),
        ("down", ModelUnreachable, 3),
        ("broken", ModelUnreachable, 3),
        ("model-error", ModelUnreachable, 3),
        ("not-ready", ModelUnreachable, 3),
        ("slow-model", ModelUnreachable, 1),
        ("at-once", ModelRateLimited, 1),
        ("throttled-midway", ModelRateLimited, 1),
        ("stream-error", AnswerCut, 1),
        ("down-midway", AnswerCut, 1),
        ("broken-midway", AnswerCut, 1),
        ("long-midway", ContextTooLong, 1),
        ("refused-midway", ModelRefusedRequest, 1),
        ("cut", AnswerCut, 1),
        ("no-end", AnswerCut, 1),
        ("half-event", AnswerCut, 1),
        ("garbage", AnswerNotUnderstood, 1),
        ("wrong-sum", AnswerNotUnderstood, 1),
        ("not-json", AnswerNotUnderstood, 1),
        ("malformed", AnswerNotUnderstood, 1),
    ],
)
async def test_every_failure_has_its_own_error_and_repeats_no_word(
    model: str, error: type[NagayaError], hits: int, opened: Opened, server: BedrockServer
) -> None:
    with pytest.raises(NagayaError) as raised:
        await (await opened(model)).complete(ASK)
    assert type(raised.value) is error
    assert raised.value.__cause__ is None
    for text in (raised.value.message("en"), raised.value.message("ja")):
        assert PROMPT not in text
    assert server.hits == hits
    assert raised.value.retry_after_s == (90 if model == "throttled-long" else None)


@pytest.mark.parametrize("model", ["denied", "not-granted"])
async def test_a_refusal_names_the_permission_that_is_missing_and_whose(model: str, opened: Opened) -> None:
    with pytest.raises(PermissionMissing, match="bedrock:InvokeModelWithResponseStream") as raised:
        await (await opened(model, room="globex")).complete(ASK)
    assert "globex" in raised.value.message("en")


@pytest.mark.parametrize("model", ["throttled-once", "down-once"])
async def test_a_short_outage_is_asked_again_before_the_answer_begins(
    model: str, opened: Opened, server: BedrockServer
) -> None:
    assert (await (await opened(model)).complete(ASK)).text == ANSWER
    assert server.hits == 2


@pytest.mark.parametrize(("model", "reason"), [("guarded", "content_filter"), ("full", "length")])
async def test_the_reason_of_the_end_is_told(model: str, reason: str, opened: Opened) -> None:
    assert (await (await opened(model)).complete(ASK)).finished.reason == reason


async def test_usage_that_the_service_does_not_send_is_estimated(opened: Opened) -> None:
    usage = (await (await opened("no-usage")).complete(ASK)).finished.usage
    assert usage.estimated
    assert usage.output_tokens > 10


async def test_what_a_model_thinks_is_no_part_of_its_answer(opened: Opened) -> None:
    assert (await (await opened("thinks")).complete(ASK)).text == ANSWER


@pytest.mark.parametrize("model", ["good", "unstreamed"])
async def test_a_call_comes_back_under_the_functions_own_name(
    model: str, opened: Opened, server: BedrockServer
) -> None:
    tool = FunctionTool("crm.look up/顧客", None, {"properties": {"q": {"type": "string"}}})
    answer = await (await opened(model)).complete(ModelRequest(ASK.turns, tools=(tool,), tool_choice="required"))
    (called,) = answer.tool_calls
    assert called == ToolCall("tooluse_9", "crm.look up/顧客", '{"q":"roof"}')
    assert answer.finished.reason == "tool_calls"
    spec = server.seen[-1][2]["toolConfig"]["tools"][0]["toolSpec"]
    assert spec["inputSchema"]["json"]["type"] == "object"
    assert spec["name"].isascii()


async def test_a_call_without_arguments_is_the_empty_object(opened: Opened) -> None:
    request = ModelRequest(ASK.turns, tools=(LOOK_UP,), tool_choice="required")
    assert (await (await opened("no-arguments")).complete(request)).tool_calls[0].arguments == "{}"


async def test_a_model_that_cannot_stream_is_asked_for_the_whole_answer(opened: Opened, server: BedrockServer) -> None:
    answer = await (await opened("unstreamed")).complete(ASK)
    assert answer.text == ANSWER
    assert answer.finished.usage.input_tokens == 40
    assert [path.rpartition("/")[2] for path, _, _ in server.seen] == ["converse-stream", "converse"]


async def test_a_long_conversation_and_its_pictures_arrive_whole(opened: Opened, server: BedrockServer) -> None:
    request = ModelRequest((Turn("user", "屋根" * 20_000), Turn("user", "", images=("data:image/jpeg;base64,AAAA",))))
    await (await opened("good")).complete(request)
    (message,) = server.seen[-1][2]["messages"]
    assert message["content"] == [
        {"text": "屋根" * 20_000},
        {"image": {"format": "jpeg", "source": {"bytes": "AAAA"}}},
    ]


@pytest.mark.parametrize("model", ["silent", "hang"])
async def test_a_model_that_falls_silent_is_given_up_in_time_and_let_go(
    model: str, opened: Opened, server: BedrockServer
) -> None:
    asked = await opened(model, deadline_s=0.3)
    await (await opened("good")).complete(ASK)
    with pytest.raises(ModelUnreachable):
        async with asyncio.timeout(60):
            await asked.complete(ASK)
    # The server itself would have been silent for ever: it was let go.
    await until(lambda: server.open_streams == 0)


async def test_closing_the_stream_closes_the_http_stream(opened: Opened, server: BedrockServer) -> None:
    model = await opened("hang")
    before = asyncio.all_tasks()
    stream = model.stream(ASK)
    assert isinstance(await anext(stream), TextDelta)
    assert server.open_streams == 1
    await stream.aclose()
    await until(lambda: server.open_streams == 0)
    assert server.abandoned == 1
    await until(lambda: asyncio.all_tasks() <= before)


@pytest.mark.parametrize("model", ["silent", "hang"])
async def test_cancelling_the_reader_closes_the_http_stream(model: str, opened: Opened, server: BedrockServer) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task((await opened(model)).complete(ASK))
    await until(lambda: server.open_streams == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: server.open_streams == 0)
    await until(lambda: asyncio.all_tasks() <= before)


# --- accounts ---------------------------------------------------------------------------------------------------


async def test_a_tenants_role_may_call_its_model_and_nothing_else(opened: Opened, server: BedrockServer) -> None:
    await (await opened("acme.good", secrets=connection_secrets())).complete(ASK)
    assert server.policies == [
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Action": ["bedrock:InvokeModel", "bedrock:InvokeModelWithResponseStream"],
                    "Resource": [f"arn:aws:bedrock:{REGION}::foundation-model/acme.good"],
                }
            ],
        }
    ]
    assert "ASIAROLE00000001" in server.seen[-1][1]["authorization"]


@pytest.mark.parametrize(
    ("model", "resources"),
    [
        (
            "jp.acme.good",
            [
                f"arn:aws:bedrock:{REGION}:123456789012:inference-profile/jp.acme.good",
                "arn:aws:bedrock:*::foundation-model/acme.good",
            ],
        ),
        (
            f"arn:aws:bedrock:{REGION}:123456789012:application-inference-profile/a1b2",
            [
                f"arn:aws:bedrock:{REGION}:123456789012:application-inference-profile/a1b2",
                "arn:aws:bedrock:*::foundation-model/*",
            ],
        ),
        (
            f"arn:aws:bedrock:{REGION}:123456789012:provisioned-model/a1b2",
            [f"arn:aws:bedrock:{REGION}:123456789012:provisioned-model/a1b2"],
        ),
    ],
)
async def test_a_profile_may_call_its_models_where_they_are(
    model: str, resources: list[str], opened: Opened, server: BedrockServer
) -> None:
    asked = await opened(model, secrets=connection_secrets())
    await asked.complete(ASK)
    assert server.policies[0]["Statement"][0]["Resource"] == resources
    assert server.seen[-1][0] == f"/model/{quote(model, safe='')}/converse-stream"
    assert "123456789012" not in asked.name


async def test_credentials_that_ended_early_are_renewed_once_and_the_call_repeated(
    opened: Opened, server: BedrockServer
) -> None:
    model = await opened("good", secrets=connection_secrets())
    await model.complete(ASK)
    server.expired_keys.add("ASIAROLE00000001")
    assert (await model.complete(ASK)).text == ANSWER
    assert server.roles == 2
    server.expired_keys.update({"ASIAROLE00000002", "ASIAROLE00000003"})
    with pytest.raises(CloudCredentialsRefused):
        await model.complete(ASK)
    assert server.roles == 3


async def test_a_token_for_bedrock_of_the_servers_own_goes_to_no_tenants_model(
    opened: Opened, server: BedrockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "operators-own")
    monkeypatch.setenv("AWS_AUTH_SCHEME_PREFERENCE", "httpBearerAuth")
    await (await opened("good", secrets=connection_secrets())).complete(ASK)
    headers = server.seen[-1][1]
    assert "operators-own" not in str(headers)
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 ")


async def test_a_machine_without_credentials_says_so(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(CloudCredentialsRefused):
        await (await opened("good")).complete(ASK)


async def test_a_tenant_pinned_elsewhere_gets_no_model(server: BedrockServer) -> None:
    for url in (f"bedrock://{REGION}/good", "bedrock://eu-west-1/global.acme.good"):
        with pytest.raises(RegionRefused):
            await open_model(url, surroundings(regions=("eu-west-1",)), api_key=None)


# --- embeddings -------------------------------------------------------------------------------------------------


async def test_embeddings_come_in_order_as_unit_vectors(server: BedrockServer) -> None:
    url = f"bedrock://{REGION}/amazon.titan-embed-text-v2:0?dimensions=4"
    driver = await open_embeddings(url, surroundings(secrets=connection_secrets()), api_key=None)
    vectors, tokens = await Embeddings(driver).embed(["x" * (at % 7) for at in range(40)])
    assert tokens == sum(at % 7 or 1 for at in range(40))
    assert vectors[7] == pytest.approx(vectors[14])
    assert vectors[6][2] > vectors[5][2] > 0
    assert {"inputText": "xx", "dimensions": 4, "normalize": True} in [body for _, _, body in server.seen]
    assert server.policies[0]["Statement"][0]["Action"] == ["bedrock:InvokeModel"]
    await driver.close()


async def test_titans_first_version_is_asked_for_no_size(server: BedrockServer) -> None:
    url = f"bedrock://{REGION}/amazon.titan-embed-text-v1?dimensions=4"
    driver = await open_embeddings(url, surroundings(), api_key=None)
    await driver.embed(["x"])
    assert server.seen[-1][2] == {"inputText": "x"}
    await driver.close()


@pytest.mark.parametrize("model", ["titan-embed-text-not-json", "titan-embed-text-wrong-size"])
async def test_vectors_that_are_none_or_of_another_size_are_refused(model: str, server: BedrockServer) -> None:
    driver = await open_embeddings(f"bedrock://{REGION}/{model}?dimensions=4", surroundings(), api_key=None)
    with pytest.raises(AnswerNotUnderstood):
        await Embeddings(driver).embed(["x", "y"])
    await driver.close()


async def test_one_refused_text_ends_the_whole_call_with_its_reason(
    server: BedrockServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"bedrock://{REGION}/amazon.titan-embed-text-v2:0?dimensions=4"
    driver = await open_embeddings(url, surroundings(), api_key=None)
    monkeypatch.setattr("nagaya.models.bedrock._EMPTY", "")
    with pytest.raises(ModelRefusedRequest):
        await Embeddings(driver).embed(["x", "", "y"])
    await driver.close()


async def test_vectors_that_break_off_are_an_outage(server: BedrockServer) -> None:
    driver = await open_embeddings(
        f"bedrock://{REGION}/titan-embed-text-cut?dimensions=4", surroundings(), api_key=None
    )
    with pytest.raises(ModelUnreachable):
        await Embeddings(driver).embed(["x"])
    await driver.close()


async def test_of_embedding_models_only_titans_are_known(server: BedrockServer) -> None:
    with pytest.raises(InvalidValue, match="Titan"):
        await open_embeddings(f"bedrock://{REGION}/cohere.embed-v4:0?dimensions=4", surroundings(), api_key=None)


async def test_a_bedrock_model_has_the_name_that_it_is_given(opened: Opened) -> None:
    driver = (await opened("good"))._driver
    assert isinstance(driver, BedrockModel)
    assert BedrockModel(driver._connection, "good", name="ours").name == "ours"


async def until(holds: Any, within_s: float = 30.0) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, "did not come true in time"
        await asyncio.sleep(0.01)
