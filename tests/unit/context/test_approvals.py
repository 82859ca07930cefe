"""A request for an approval is answered once, whichever way the answer comes, and what it asks for is called once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from nagaya.context import approvals
from nagaya.context.idempotency import Claim, claim
from nagaya.context.places import approval_sort
from nagaya.context.response_run import ResponseRun
from nagaya.context.response_shapes import ResponseIn
from nagaya.context.tenant_context import TenantContext
from nagaya.context.tool_items import McpApprovalRequest, McpCall
from nagaya.errors import InvalidValue, ModelUnreachable, NotFound, StoreUnreachable
from nagaya.kernel.clock import SystemClock
from nagaya.lifecycle.bundle_format import Passphrase
from nagaya.testing.models import call, say
from support.inside import inside
from support.library import every_record
from support.mcp_server import ToolsServer, running_tools

ORDER = call("roofs__order", '{"thing":"tiles"}')
ORDERED = [("order", "tiles")]


@pytest.fixture(scope="module")
def running() -> Iterator[ToolsServer]:
    with running_tools() as server:
        yield server


@pytest.fixture
def tools(running: ToolsServer) -> ToolsServer:
    running.called.clear()
    return running


class Asked:
    """A tenant whose model asked to order tiles, in a conversation or alone; ``house`` is open around it."""

    def __init__(self, tenant: TenantContext, tools: ToolsServer) -> None:
        self.tenant = tenant
        self.tool = tools.tool(require_approval="always")
        self.first = ""
        self.request = ""
        self.conversation: str | None = None

    async def ask(self, conversation: str | None = None) -> None:
        given = ResponseIn(input="Order tiles", conversation=conversation, tools=[self.tool])
        first = await self.tenant.responses.create(given)
        self.first, self.request, self.conversation = first.id, first.output[-1].id, conversation

    def answer(self, *, approve: bool = True, **place: str) -> ResponseIn:
        """An answer where it was asked, or at another place."""
        if not place:
            place = {"conversation": self.conversation} if self.conversation else {"previous_response_id": self.first}
        said = {"type": "mcp_approval_response", "approval_request_id": self.request, "approve": approve}
        return msgspec.convert({"input": [said], "tools": [self.tool], **place}, ResponseIn)

    async def begin(self, held: Claim | None = None, **answer) -> ResponseRun:
        return await self.tenant.responses.begin(self.answer(**answer), held)

    async def refused(self, **answer) -> None:
        with pytest.raises(InvalidValue, match="answered before"):
            await self.begin(**answer)

    async def notes(self) -> list[str]:
        """Where it is noted that somebody answers a request."""
        sort = approval_sort(self.request)
        return [partition.collection for partition, row in await every_record(self.tenant) if row.sort == sort]


def opened(folder: Path, monkeypatch, tools: ToolsServer, *scripts):
    return inside(folder, monkeypatch, *scripts, allowed_hosts=(tools.place,))


@pytest.mark.parametrize("is_in_conversation", [True, False])
async def test_a_call_that_two_requests_approve_at_once_is_made_once(
    tmp_path: Path, monkeypatch, tools: ToolsServer, is_in_conversation: bool
):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id if is_in_conversation else None)
        begun = await asyncio.gather(*[asked.begin() for _ in range(4)], return_exceptions=True)
        runs = [each for each in begun if isinstance(each, ResponseRun)]
        assert len(runs) == 1
        assert all("answered before" in str(each) for each in begun if isinstance(each, Exception))
        await asked.refused()
        assert (await runs[0].finish()).status == "completed"
        await asked.refused()
        assert tools.called == ORDERED


async def test_what_cannot_be_begun_in_the_background_holds_nothing(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id)
        leases, run = tenant.session.room.leases, await asked.begin()

        async def dies(*_):
            raise StoreUnreachable

        with monkeypatch.context() as cut:
            cut.setattr(type(tenant.responses), "_note_place", dies)
            with pytest.raises(StoreUnreachable):
                await tenant.responses.start_background(run)
        assert tenant.session.room.leases == leases
        await (await asked.begin()).finish()
        assert tools.called == ORDERED


async def test_an_answer_on_one_branch_of_a_history_counts_on_all(tmp_path: Path, monkeypatch, tools: ToolsServer):
    scripts = [ORDER, say("Well?"), say("Ordered.")]
    async with opened(tmp_path, monkeypatch, tools, *scripts) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        beside = await tenant.responses.create(ResponseIn(input="Hm", previous_response_id=asked.first))
        await (await asked.begin(previous_response_id=beside.id)).finish()
        await asked.refused()
        await asked.refused(previous_response_id=beside.id)
        await asked.refused(approve=False)
        assert tools.called == ORDERED


async def test_what_was_declined_on_one_branch_is_not_approved_on_another(tmp_path: Path, monkeypatch, tools):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("I did not.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        await (await asked.begin(approve=False)).finish()
        await asked.refused()
        tenant.session.clock = Later()
        await asked.refused()
        assert tools.called == []


@pytest.mark.parametrize("is_first_in_conversation", [True, False])
async def test_a_request_in_a_conversation_is_answered_there_or_after_its_response(
    tmp_path: Path, monkeypatch, tools: ToolsServer, is_first_in_conversation: bool
):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id)
        ways = [{"conversation": asked.conversation}, {"previous_response_id": asked.first}]
        one, other = ways if is_first_in_conversation else reversed(ways)
        await (await asked.begin(**one)).finish()
        await asked.refused(**other)
        await asked.refused(**one)
        assert tools.called == ORDERED


async def test_a_fork_answers_nothing_that_was_asked_before_it(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id)
        forks = [await tenant.conversations.fork(asked.conversation)]
        await (await asked.begin()).finish()
        forks.append(await tenant.conversations.fork(asked.conversation))
        for fork in forks:
            copies = await tenant.conversations.all_items(fork.id)
            asked.request = next(item.id for item in copies if isinstance(item, McpApprovalRequest))
            with pytest.raises(InvalidValue, match="forked from"):
                await asked.begin(conversation=fork.id)
        assert tools.called == ORDERED


class Later(SystemClock):
    """Long after a run that said nothing more was given up."""

    def now_us(self) -> int:
        return super().now_us() + 3600 * 1_000_000


async def _until_the_call(run: ResponseRun) -> None:
    while (event := await run.next()) is not None:
        if event.type == "response.mcp_call.in_progress":
            return
    raise AssertionError


@pytest.mark.parametrize("is_in_conversation", [True, False])
async def test_a_process_that_ends_between_its_word_and_the_call_leaves_the_request_answered(
    tmp_path: Path, monkeypatch, tools: ToolsServer, is_in_conversation: bool
):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id if is_in_conversation else None)
        lost = await asked.begin()
        await _until_the_call(lost)
        tenant.session.clock = Later()
        await asked.refused()
        assert tools.called == []


async def test_a_process_that_ends_before_its_word_lets_the_request_be_answered_later(
    tmp_path: Path, monkeypatch, tools
):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        paused = await asked.begin()
        await asked.refused()
        tenant.session.clock = Later()
        assert (await (await asked.begin()).finish()).status == "completed"
        # The first was paused only. It finds that another has answered, and calls nothing.
        assert (await paused.finish()).status == "failed"
        assert isinstance(paused.problem, InvalidValue)
        await asked.refused()
        assert tools.called == ORDERED


async def test_an_idempotent_answer_that_is_repeated_after_a_crash_calls_once(tmp_path: Path, monkeypatch, tools):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        held = await claim(tenant.session, "key", b"request")
        assert isinstance(held, Claim)
        lost, repeated = await asked.begin(held), await asked.begin(held)
        await _until_the_call(repeated)
        assert (await lost.finish()).status == "failed"
        with pytest.raises(InvalidValue, match="answered before"):
            await asked.begin(held)
        assert tools.called == []


async def test_an_idempotent_refusal_that_is_repeated_after_a_crash_is_made(tmp_path: Path, monkeypatch, tools):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("I did not.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        held = await claim(tenant.session, "key", b"request")
        assert isinstance(held, Claim)
        lost = await asked.begin(held, approve=False)
        while (event := await lost.next()) is not None and event.type != "response.output_text.delta":
            pass
        assert (await (await asked.begin(held, approve=False)).finish()).status == "completed"


async def test_a_call_is_not_made_again_where_the_answer_failed_after_it(tmp_path: Path, monkeypatch, tools):
    scripts = [ORDER, [ModelUnreachable()], say("They are coming.")]
    async with opened(tmp_path, monkeypatch, tools, *scripts) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id)
        failed = await (await asked.begin()).finish()
        assert failed.status == "failed"
        await asked.refused()
        made = [item for item in await tenant.conversations.all_items(asked.conversation) if isinstance(item, McpCall)]
        assert [(item.output, item.approval_request_id) for item in made] == [("Ordered tiles.", asked.request)]
        given = ResponseIn(input="And?", conversation=asked.conversation, tools=[asked.tool])
        await tenant.responses.create(given)
        assert "Ordered tiles." in [turn.text for turn in house.model.requests[-1].turns]
        assert tools.called == ORDERED


async def test_of_a_call_that_was_cut_off_the_conversation_says_that_its_outcome_is_not_known(
    tmp_path: Path, monkeypatch, tools: ToolsServer
):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id)
        run = await asked.begin()
        await _until_the_call(run)

        async def cut(*_) -> None:
            raise NotFound("tenant")

        monkeypatch.setattr(ResponseRun, "_outcome", cut)
        assert (await run.finish()).status == "failed"
        made = (await tenant.conversations.all_items(asked.conversation))[-1]
        assert isinstance(made, McpCall)
        assert (made.status, made.output) == ("incomplete", None)
        assert "not known" in (made.error or "")


@pytest.mark.parametrize("is_in_conversation", [True, False])
async def test_what_was_not_called_may_be_answered_again_where_the_answer_failed(
    tmp_path: Path, monkeypatch, tools: ToolsServer, is_in_conversation: bool
):
    scripts = [ORDER, [ModelUnreachable()], say("Yes.")]
    async with opened(tmp_path, monkeypatch, tools, *scripts) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id if is_in_conversation else None)
        assert (await (await asked.begin(approve=False)).finish()).status == "failed"
        assert await asked.notes() == []
        assert (await (await asked.begin()).finish()).status == "completed"
        assert tools.called == ORDERED


async def test_an_answer_holds_while_its_note_is_sealed_anew(tmp_path: Path, monkeypatch, tools: ToolsServer):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        run = await asked.begin()
        await house.nagaya.tenants.rotate_key("acme")
        tenant.session.records.drop_keys()
        assert (await tenant.session.records.reseal(limit=500)).resealed
        assert (await run.finish()).status == "completed"
        await asked.refused()
        assert tools.called == ORDERED


@pytest.mark.parametrize("what", ["response", "conversation"])
async def test_what_is_noted_of_an_answer_goes_with_what_asked(tmp_path: Path, monkeypatch, tools, what: str):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask((await tenant.conversations.create()).id if what == "conversation" else None)
        await (await asked.begin()).finish()
        assert await asked.notes() == [what]
        if asked.conversation:
            await tenant.conversations.delete(asked.conversation, permanent=True)
        else:
            await tenant.responses.delete(asked.first)
        assert await asked.notes() == []
        with pytest.raises(NotFound):
            await asked.begin()


async def test_what_is_removed_while_it_is_being_answered_leaves_no_note(tmp_path: Path, monkeypatch, tools):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        note = approvals.TakenRequests._note

        async def after_the_removal(self, noted) -> None:
            await tenant.responses.delete(asked.first)
            await note(self, noted)

        monkeypatch.setattr(approvals.TakenRequests, "_note", after_the_removal)
        with pytest.raises(NotFound):
            await asked.begin()
        assert await asked.notes() == []
        assert tools.called == []


async def test_a_response_is_deleted_also_while_what_it_asked_is_being_answered(tmp_path: Path, monkeypatch, tools):
    async with opened(tmp_path, monkeypatch, tools, ORDER, say("Ordered.")) as house, house.as_user() as tenant:
        asked = Asked(tenant, tools)
        await asked.ask()
        run = await asked.begin()
        records = tenant.session.records
        query = type(records).query

        async def then_settled(self, partition, **options):
            rows = await query(self, partition, **options)
            if partition.collection == "response":
                monkeypatch.setattr(type(records), "query", query)
                await _until_the_call(run)
            return rows

        monkeypatch.setattr(type(records), "query", then_settled)
        await tenant.responses.delete(asked.first)
        assert await asked.notes() == []
        assert (await run.finish()).status == "completed"
        assert await asked.notes() == []
        assert tools.called == ORDERED


async def test_an_answer_goes_along_in_a_bundle(tmp_path: Path, monkeypatch, tools: ToolsServer):
    word = Passphrase("correct horse battery")
    async with opened(tmp_path / "data", monkeypatch, tools, ORDER, say("Ordered.")) as house:
        async with house.as_user() as tenant:
            asked = Asked(tenant, tools)
            await asked.ask()
            await (await asked.begin()).finish()
        await house.nagaya.bundles.export("acme", tmp_path / "acme.bundle", word)
        await house.nagaya.bundles.import_(tmp_path / "acme.bundle", word, tenant_id="globex")
        entrance = await house.nagaya.enter(await house.nagaya.tenants.mint("globex", "mio"))
        async with house.nagaya.session(entrance) as there:
            asked.tenant = there
            await asked.refused()
        assert tools.called == ORDERED
