"""What traces tell of models: by the conventions' names, with nothing that was said unless it is asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, server_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from nagaya import Message, Nagaya
from nagaya.errors import AnswerNotUnderstood, ContextTooLong
from nagaya.models import model as module
from nagaya.models.address import parse_model_address
from nagaya.models.driver import Finished, FunctionTool, ModelRequest, TextDelta, ToolCall, Turn, Usage
from nagaya.models.model import Embeddings, Model
from nagaya.models.spans import Origin
from nagaya.settings import Settings
from nagaya.testing.models import ScriptedEmbeddings, ScriptedModel, call

CANARY = "zq-canary-said-to-a-model-苔"
FAR = Origin("openai", "llm.example", 8443)
KNOWN = {
    value
    for names in (gen_ai_attributes, server_attributes, error_attributes)
    for name, value in vars(names).items()
    if name.isupper() and isinstance(value, str)
}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """Every span of a model's call, as an exporter gets it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(module, "_tracer", provider.get_tracer("nagaya.models"))
    yield exporter
    provider.shutdown()


def only(spans: InMemorySpanExporter) -> tuple[ReadableSpan, Mapping[str, Any]]:
    (span,) = spans.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert attributes.keys() <= KNOWN, "names that are not the conventions'"
    return span, attributes


def everything(spans: InMemorySpanExporter) -> str:
    # Not to_json: it writes what is not ASCII otherwise.
    return "".join(
        f"{span.name} {dict(span.attributes or {})} {span.status.description} {[(e.name, e.attributes) for e in span.events]}"
        for span in spans.get_finished_spans()
    )


ASK = ModelRequest(
    turns=(
        Turn("system", f"Be brief. {CANARY}"),
        Turn("user", CANARY, images=("data:image/png;base64,AAAA", "https://x.example/a.png")),
        Turn("assistant", "", tool_calls=(ToolCall("call_1", "weather", f'{{"city":"{CANARY}"}}'),)),
        Turn("tool", CANARY, tool_call_id="call_1"),
    ),
    tools=(FunctionTool("weather", CANARY, {"type": "object"}),),
    temperature=0.5,
    top_p=0.9,
    max_output_tokens=100,
    seed=7,
    stop=("END",),
    response_format={"type": "json_object"},
    user=f"user-{CANARY}",
)


async def test_an_answer_is_told_by_the_names_of_the_conventions_and_nothing_that_was_said(
    spans: InMemorySpanExporter,
) -> None:
    end = Finished("stop", Usage(30, 12, cached_tokens=10, reasoning_tokens=4), "gpt-far-2026")
    await Model(ScriptedModel([TextDelta(CANARY), end], name="gpt-far"), origin=FAR).complete(ASK)
    span, attributes = only(spans)
    assert span.name == "chat gpt-far"
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.UNSET
    assert attributes.pop("gen_ai.response.time_to_first_chunk") >= 0
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-far",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.seed": 7,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.output.type": "json",
        "gen_ai.response.model": "gpt-far-2026",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 30,
        "gen_ai.usage.output_tokens": 12,
        "gen_ai.usage.cache_read.input_tokens": 10,
        "gen_ai.usage.reasoning.output_tokens": 4,
        "server.address": "llm.example",
        "server.port": 8443,
    }
    assert CANARY not in everything(spans)


async def test_what_was_said_is_told_where_the_operator_asked_for_it_but_never_who_asked(
    spans: InMemorySpanExporter,
) -> None:
    driver = ScriptedModel([*call("weather", '{"city":"Kyoto"}')], name="m")
    await Model(driver, origin=FAR._replace(content=True)).complete(ASK)
    _, attributes = only(spans)
    assert json.loads(attributes["gen_ai.system_instructions"]) == [{"type": "text", "content": f"Be brief. {CANARY}"}]
    user, assistant, tool = json.loads(attributes["gen_ai.input.messages"])
    assert user == {
        "role": "user",
        "parts": [
            {"type": "text", "content": CANARY},
            {"type": "uri", "modality": "image", "uri": "data:"},
            {"type": "uri", "modality": "image", "uri": "https://x.example/a.png"},
        ],
    }
    assert assistant["parts"] == [
        {"type": "tool_call", "id": "call_1", "name": "weather", "arguments": f'{{"city":"{CANARY}"}}'}
    ]
    assert tool == {
        "role": "tool",
        "parts": [{"type": "tool_call_response", "id": "call_1", "response": CANARY}],
    }
    assert json.loads(attributes["gen_ai.tool.definitions"])[0]["name"] == "weather"
    (answer,) = json.loads(attributes["gen_ai.output.messages"])
    assert answer["finish_reason"] == "tool_call"
    assert answer["parts"][0]["name"] == "weather"
    assert f"user-{CANARY}" not in everything(spans)


async def test_a_failure_is_told_by_its_kind_alone(spans: InMemorySpanExporter) -> None:
    for problem, kind in ((ContextTooLong(), "context_length_exceeded"), (RuntimeError(CANARY), "RuntimeError")):
        spans.clear()
        with pytest.raises((ContextTooLong, AnswerNotUnderstood)):
            await Model(ScriptedModel([TextDelta("a"), problem]), origin=FAR).complete(ASK)
        span, attributes = only(spans)
        assert attributes["error.type"] == kind
        assert span.status.status_code is StatusCode.ERROR
        assert not span.events
        assert CANARY not in everything(spans)


async def test_an_answer_that_nobody_reads_to_its_end_is_a_span_that_ended(spans: InMemorySpanExporter) -> None:
    events = Model(ScriptedModel([TextDelta("a"), TextDelta("b"), TextDelta("c")])).stream(ASK)
    await anext(events)
    await events.aclose()
    span, attributes = only(spans)
    assert span.end_time is not None
    assert "gen_ai.usage.output_tokens" not in attributes


async def test_embeddings_are_told_without_their_texts(spans: InMemorySpanExporter) -> None:
    await Embeddings(ScriptedEmbeddings(), origin=FAR._replace(content=True)).embed([CANARY, CANARY])
    span, attributes = only(spans)
    assert span.name == f"embeddings {attributes['gen_ai.request.model']}"
    assert attributes["gen_ai.operation.name"] == "embeddings"
    assert attributes["gen_ai.embeddings.dimension.count"] == ScriptedEmbeddings().dimensions
    assert attributes["gen_ai.usage.input_tokens"] > 0
    assert CANARY not in everything(spans)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("builtin://", ("nagaya", "", 0)),
        ("openai://gpt-5-mini", ("openai", "api.openai.com", 443)),
        ("openai+https://llm.example:8443/v1#m", ("openai", "llm.example", 8443)),
        ("azure-openai://res/dep", ("azure.ai.openai", "res.openai.azure.com", 443)),
        ("bedrock://ap-northeast-1/amazon.nova-lite-v1:0", ("aws.bedrock", "bedrock-runtime.ap-northeast-1.amazonaws.com", 443)),
    ],
)  # fmt: skip
def test_a_model_is_told_by_its_provider_and_server(url: str, origin: tuple[str, str, int]) -> None:
    assert Origin.of(url, parse_model_address(url), content=False) == Origin(*origin)


@pytest.mark.parametrize("content", [False, True])
async def test_a_tenants_own_answers_are_traced_with_content_only_as_the_setting_says(
    spans: InMemorySpanExporter, tmp_path: Path, content: bool
) -> None:
    settings = Settings(data=str(tmp_path), telemetry_content=content)
    async with Nagaya.open(settings=settings) as nagaya:
        await nagaya.tenants.create("acme", name="Acme KK")
        entrance = await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))
        async with nagaya.session(entrance) as tenant:
            chat = await tenant.conversations.create(items=[Message.user(CANARY)])
            await tenant.responses.create("Well?", conversation=chat.id)
    span, attributes = only(spans)
    assert span.name == "chat nagaya-builtin"
    assert span.kind is SpanKind.INTERNAL
    assert attributes["gen_ai.provider.name"] == "nagaya"
    assert (CANARY in everything(spans)) is content
