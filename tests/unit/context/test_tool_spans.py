"""What traces tell of the tools that run at the server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from nagaya.context import response_run
from nagaya.context.response_shapes import ResponseIn
from nagaya.errors import InvalidValue, SessionClosed
from nagaya.models.line import ModelLine
from nagaya.testing.models import call, say
from support.inside import inside
from support.searching import Searching

CANARY = "zq-canary-told-to-a-tool"
SEARCH = call("file_search", f'{{"query":"{CANARY}"}}')


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(response_run, "_tracer", provider.get_tracer("nagaya.tools"))
    yield exporter
    provider.shutdown()


def told(spans: InMemorySpanExporter) -> tuple[str, dict[str, Any], StatusCode]:
    (span,) = spans.get_finished_spans()
    assert not span.events
    return span.name, dict(span.attributes or {}), span.status.status_code


async def test_a_search_is_told_without_what_was_searched_for(tmp_path: Path, monkeypatch, spans):
    async with inside(tmp_path, monkeypatch, SEARCH, say("Ren.")) as house, house.as_user() as tenant:
        await (await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Searching(roof=CANARY)])).finish()
    name, attributes, status = told(spans)
    assert (name, status) == ("execute_tool file_search", StatusCode.UNSET)
    assert attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "file_search",
        "gen_ai.tool.call.id": "call_1",
        "gen_ai.tool.type": "datastore",
    }


async def test_what_a_function_was_asked_and_gave_is_told_where_the_operator_asked_for_it(
    tmp_path: Path, monkeypatch, spans
):
    def price(item: str) -> str:
        """The price of an item."""
        return f"1,200 yen for {item}"

    monkeypatch.setattr(ModelLine, "traces_content", property(lambda self: True))
    scripts = [call("price", f'{{"item":"{CANARY}"}}'), say("1,200 yen.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        await tenant.agents.run("What does it cost?", functions=[price])
    _, attributes, _ = told(spans)
    assert attributes["gen_ai.tool.type"] == "function"
    assert attributes["gen_ai.tool.call.arguments"] == f'{{"item":"{CANARY}"}}'
    assert CANARY in attributes["gen_ai.tool.call.result"]


@pytest.mark.parametrize(
    ("problem", "kind"),
    [(InvalidValue(at="query", detail=CANARY), "tool_failed"), (SessionClosed(), "session_closed"), (KeyError(CANARY), "KeyError")],
)  # fmt: skip
async def test_a_tool_that_fails_is_told_by_its_kind_alone(tmp_path: Path, monkeypatch, spans, problem, kind):
    class Broken(Searching):
        async def run(self, call, item, sources):
            raise problem

    async with inside(tmp_path, monkeypatch, SEARCH, say("I cannot.")) as house, house.as_user() as tenant:
        with contextlib.suppress(SessionClosed, KeyError):
            await (await tenant.responses.begin(ResponseIn(input="Who?"), tools=[Broken()])).finish()
    _, attributes, status = told(spans)
    assert status is StatusCode.ERROR
    assert attributes["error.type"] == kind
    assert CANARY not in str(attributes)
