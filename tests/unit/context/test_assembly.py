"""What of a long conversation a model is sent, that it can be shown, and that a summary forgets what was deleted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nagaya.context import summaries
from nagaya.context.items import Message
from nagaya.context.summaries import Summaries
from nagaya.context.summary_rules import Said, summarize
from nagaya.errors import NotFound, StoreUnreachable
from nagaya.kernel.tokens import estimate_tokens
from nagaya.models.tokens import estimate_input
from nagaya.records.sealed_store import SealedStore
from nagaya.testing.models import say
from nagaya.wiring import parts
from support.inside import inside

WINDOW = 2048


@pytest.fixture
def small_window(monkeypatch):
    """Every model of the tenant has a window of 2,048 tokens."""
    made = parts.Model

    def model(driver, **options):
        return made(driver, **{**options, "context_tokens": WINDOW})

    monkeypatch.setattr(parts, "Model", model)


async def filled(tenant, turns: int, *, first: str = "") -> str:
    chat = await tenant.conversations.create()
    items = [Message.user(first)] if first else []
    for number in range(turns):
        items.append(Message.user(f"Order {number} is for {number * 7} tiles of the kind Kawara-{number % 5}, please."))
        items.append(Message.assistant(f"Noted: order {number}."))
    for start in range(0, len(items), 20):
        await tenant.conversations.append(chat.id, *items[start : start + 20])
    return chat.id


async def test_a_short_conversation_is_sent_whole(tmp_path: Path, monkeypatch, small_window):
    async with inside(tmp_path, monkeypatch, say("Yes.")) as house, house.as_user() as tenant:
        chat = await filled(tenant, 5)
        await tenant.responses.create("All noted?", conversation=chat)
        assert len(house.model.requests[0].turns) == 11
        assert await Summaries(tenant.session, None).newest(chat) is None


async def test_a_long_conversation_fits_the_window_and_begins_with_its_summary(
    tmp_path: Path, monkeypatch, small_window
):
    async with inside(tmp_path, monkeypatch, say("Yes.")) as house, house.as_user() as tenant:
        chat = await filled(tenant, 300, first="My customer number is KW-7741.")
        answer = await tenant.responses.create("All noted?", conversation=chat)
        asked = house.model.requests[0]
        assert estimate_input(asked) < WINDOW * 0.8
        assert "a summary" in asked.turns[0].text
        assert asked.turns[0].role == "user"
        assert asked.turns[-2].text == "Noted: order 299."
        shown = await tenant.responses.context(answer.id)
        assert shown.turns == list(asked.turns)
        assert shown.missing == 0
        assert shown.summary is not None


async def test_the_next_answers_use_the_summary_there_is(tmp_path: Path, monkeypatch, small_window):
    async with inside(tmp_path, monkeypatch, say("Yes.")) as house, house.as_user() as tenant:
        monkeypatch.setattr(Summaries, "improve", lambda *given: None)
        chat = await filled(tenant, 300)
        await tenant.responses.create("All noted?", conversation=chat)
        made = await Summaries(tenant.session, None).newest(chat)
        await tenant.responses.create("Really?", conversation=chat)
        assert await Summaries(tenant.session, None).newest(chat) == made
        assert house.model.requests[1].turns[0] == house.model.requests[0].turns[0]
        for number in range(20):
            await tenant.responses.create(
                "Tell me more about every single order. " * 12 + str(number), conversation=chat
            )
        later = await Summaries(tenant.session, None).newest(chat)
        assert later.summary.upto > made.summary.upto
        assert later.summary.former == later.number - 1


async def test_a_model_that_can_write_betters_the_summary_in_the_background(tmp_path: Path, monkeypatch, small_window):
    scripts = [say("Yes."), say("- user: ordered tiles, 300 times.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        chat = await filled(tenant, 300)
        await tenant.responses.create("All noted?", conversation=chat)
        async with asyncio.timeout(20):
            while (await Summaries(tenant.session, None).newest(chat)).summary.by == "rules":
                await asyncio.sleep(0.02)
        made = await Summaries(tenant.session, None).newest(chat)
        assert (made.summary.text, made.summary.by) == ("- user: ordered tiles, 300 times.", "scripted")
        assert made.summary.former == 1


async def test_a_deleted_item_is_in_no_summary_any_more(tmp_path: Path, monkeypatch, small_window):
    async with inside(tmp_path, monkeypatch, say("Yes.")) as house, house.as_user() as tenant:
        monkeypatch.setattr(Summaries, "improve", lambda *given: None)
        secret = "The door code is 4471-canary and the number of the safe is 9932-canary."
        chat = await filled(tenant, 300, first=secret)
        answer = await tenant.responses.create("All noted?", conversation=chat)
        assert "canary" in house.model.requests[0].turns[0].text
        first = (await tenant.conversations.items(chat, order="asc", limit=1))[0]
        await tenant.conversations.delete_item(chat, first.id)
        assert await Summaries(tenant.session, None).newest(chat) is None
        shown = await tenant.responses.context(answer.id)
        assert shown.missing == 1
        assert "canary" not in str(shown.turns)
        await tenant.responses.create("And now?", conversation=chat)
        assert not any("canary" in turn.text for turn in house.model.requests[1].turns)


async def test_a_conversation_of_a_thousand_turns_is_answered(tmp_path: Path, monkeypatch, small_window):
    async with inside(tmp_path, monkeypatch, say("Yes.")) as house, house.as_user() as tenant:
        chat = await filled(tenant, 500)
        answer = await tenant.responses.create("Well?", conversation=chat)
        assert answer.status == "completed"
        assert estimate_input(house.model.requests[0]) < WINDOW


async def test_a_context_is_replayed_on_another_model_outside_the_conversation(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One."), say("Two.")) as house, house.as_user() as tenant:
        chat = await filled(tenant, 2)
        answer = await tenant.responses.create("Well?", conversation=chat, instructions="Be brief.")
        again = await (await tenant.responses.replay(answer.id)).finish()
        assert house.model.requests[1].turns == house.model.requests[0].turns
        assert (again.output_text, again.conversation, again.metadata["replay_of"]) == ("Two.", None, answer.id)
        assert len(await tenant.conversations.items(chat, limit=100)) == 6
        with pytest.raises(NotFound):
            await tenant.responses.replay(answer.id, "no-such-model")


async def test_somebody_elses_context_is_not_found(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One.")) as house:
        async with house.as_user() as tenant:
            answer = await tenant.responses.create("Well?")
        async with house.as_user("ren") as other:
            for attempt in (other.responses.context(answer.id), other.responses.replay(answer.id)):
                with pytest.raises(NotFound):
                    await attempt


async def test_a_response_goes_with_its_conversation_and_comes_back_with_it(tmp_path: Path, monkeypatch):
    async with inside(tmp_path, monkeypatch, say("One.")) as house, house.as_user() as tenant:
        chat = await filled(tenant, 2)
        answer = await tenant.responses.create("Well?", conversation=chat)
        before = await tenant.responses.context(answer.id)
        await tenant.conversations.delete(chat)
        for attempt in (tenant.responses.context(answer.id), tenant.responses.retrieve(answer.id)):
            with pytest.raises(NotFound):
                await attempt
        await tenant.conversations.restore(chat)
        assert await tenant.responses.context(answer.id) == before


def test_a_summary_keeps_figures_and_names_and_its_length():
    said = [Said("user", f"Thanks. Order {n} of Tanaka Tiles costs {n}00 yen.") for n in range(200)]
    text = summarize("", said, limit_tokens=200)
    assert estimate_tokens(text) <= 220
    assert "Tanaka" in text
    assert text == summarize("", said, limit_tokens=200)
    assert all(line.startswith("- user: ") for line in text.split("\n"))


def test_a_summary_of_a_summary_carries_on_what_mattered():
    first = summarize("", [Said("user", "My customer number is KW-7741. Hello there.")], limit_tokens=100)
    text = summarize(first, [Said("assistant", "All right then.")] * 30, limit_tokens=60)
    assert "KW-7741" in text


def test_japanese_is_summed_up_by_its_sentences():
    said = [Said("user", "屋根の修理は田中さんが担当です。見積もりは 12 万円でした。ありがとう。")] * 3
    text = summarize("", said, limit_tokens=80)
    assert "12 万円" in text


@pytest.mark.parametrize("again", [False, True])
async def test_an_item_that_is_deleted_while_it_is_being_summed_up_is_in_no_summary(
    tmp_path: Path, monkeypatch, small_window, again: bool
):
    """``again``: it is in the former summary, that is being summed up with what came after it."""
    async with inside(tmp_path, monkeypatch, *[say("Yes.")] * 40) as house, house.as_user() as tenant:
        monkeypatch.setattr(Summaries, "improve", lambda *given: None)
        secret = "The door code is 4471-canary and the number of the safe is 9932-canary."
        chat = await filled(tenant, 300, first=secret)
        first = (await tenant.conversations.items(chat, order="asc", limit=1))[0]
        if again:
            await tenant.responses.create("All noted?", conversation=chat)
            for start in range(0, 600, 20):
                more = [Message.user(f"Order {number} is for tiles.") for number in range(start, start + 20)]
                await tenant.conversations.append(chat, *more)
        by_rule = Summaries.by_rule

        async def late(self, *args, **options):
            monkeypatch.setattr(Summaries, "by_rule", by_rule)
            await tenant.conversations.delete_item(chat, first.id)
            return await by_rule(self, *args, **options)

        monkeypatch.setattr(Summaries, "by_rule", late)
        await tenant.responses.create("And now?", conversation=chat)
        assert "canary" not in (await Summaries(tenant.session, None).newest(chat)).summary.text
        assert not any("canary" in turn.text for turn in house.model.requests[-1].turns)


async def test_a_better_summary_of_what_is_being_deleted_is_not_kept_though_its_writer_dies(
    tmp_path: Path, monkeypatch, small_window
):
    scripts = [say("Yes."), say("- user: the door code is 4471-canary.")]
    async with inside(tmp_path, monkeypatch, *scripts) as house, house.as_user() as tenant:
        chat = await filled(tenant, 300, first="The door code is 4471-canary.")
        first = (await tenant.conversations.items(chat, order="asc", limit=1))[0]
        get, improved, ended = SealedStore.get, summaries._improved, asyncio.Event()

        async def watched(*args) -> None:
            await improved(*args)
            ended.set()

        async def then_deleted(self, partition, sort):
            there = await get(self, partition, sort)
            if sort == b"s" + (1).to_bytes(8, "big"):
                monkeypatch.setattr(SealedStore, "get", get)
                await tenant.conversations.delete_item(chat, first.id)
            return there

        async def dies(*_: object) -> None:
            raise StoreUnreachable

        monkeypatch.setattr(SealedStore, "get", then_deleted)
        monkeypatch.setattr(summaries, "_improved", watched)
        monkeypatch.setattr(summaries, "forget_summaries", dies)
        await tenant.responses.create("All noted?", conversation=chat)
        await asyncio.wait_for(ended.wait(), 30)
        assert await Summaries(tenant.session, None).newest(chat) is None
