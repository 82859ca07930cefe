"""Two tenants with two users each, acting at random on one Nagaya over SQLite, beside a model of what must be true."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from nagaya.context.items import Message
from nagaya.context.tenant_context import TenantContext
from nagaya.errors import Forbidden, NotFound
from nagaya.settings import Settings
from nagaya.wiring import Nagaya

TENANTS = ("acme", "globex")
# Both tenants have users of the same names; "yui" is a member and reads what is shared.
USERS = (("mio", "user"), ("yui", "member"))
PEOPLE = [(tenant, user) for tenant in TENANTS for user, _ in USERS]

who = st.sampled_from(PEOPLE)
pick = st.integers(0, 10**6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


class Chat:
    """What the model knows of a conversation."""

    def __init__(self, tenant: str, owner: str, title: str) -> None:
        self.tenant = tenant
        self.owner = owner
        self.metadata = {"title": title}
        self.shared = False
        self.archived = False
        self.items: list[tuple[str, str]] = []

    def seen_by(self, person: tuple[str, str]) -> bool:
        tenant, user = person
        return tenant == self.tenant and (user == self.owner or (self.shared and user == "yui"))

    def owned_by(self, person: tuple[str, str]) -> bool:
        return person == (self.tenant, self.owner)


class TwoTenants(RuleBasedStateMachine):
    """Conversations are created, appended to, paged, shared, renamed, archived and deleted by their owners, and
    everybody tries everything on everybody's."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.nagaya: Nagaya | None = None
        self.tokens: dict[tuple[str, str], str] = {}
        self.chats: dict[str, Chat] = {}
        self.gone: list[str] = []

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(work)

    async def inside(self, person: tuple[str, str], act: Callable[[TenantContext], Awaitable[Any]]) -> Any:
        assert self.nagaya is not None
        async with self.nagaya.session(await self.nagaya.enter(self.tokens[person])) as tenant:
            return await act(tenant)

    def do(self, person: tuple[str, str], act: Callable[[TenantContext], Awaitable[Any]]) -> Any:
        return self.run(self.inside(person, act))

    def refused(self, person: tuple[str, str], act: Callable[[TenantContext], Awaitable[Any]]) -> None:
        try:
            self.do(person, act)
        except NotFound:
            return
        raise AssertionError("it was not refused")

    @initialize()
    def open(self) -> None:
        async def begin() -> None:
            self.nagaya = await Nagaya.open(settings=Settings(data=self.folder.name)).__aenter__()
            for tenant in TENANTS:
                await self.nagaya.tenants.create(tenant, name=tenant)
                for user, role in USERS:
                    self.tokens[tenant, user] = await self.nagaya.tenants.mint(tenant, user, role)

        self.run(begin())
        for person in PEOPLE:
            self.create(person, "first", ["one", "two"])

    def teardown(self) -> None:
        if self.nagaya is not None:
            self.run(self.nagaya.close())
        self.loop.close()
        self.folder.cleanup()

    def any_chat(self, number: int) -> str:
        return sorted(self.chats)[number % len(self.chats)]

    def actor(self, person: tuple[str, str], chat: Chat, number: int) -> tuple[str, str]:
        """Mostly the owner, so that things happen; else anybody, so that everything is tried by everybody."""
        return (chat.tenant, chat.owner) if number % 4 else person

    @rule(person=who, title=texts, first=st.lists(texts, max_size=3))
    def create(self, person: tuple[str, str], title: str, first: list[str]) -> None:
        items = [Message.user(text) for text in first]
        made = self.do(person, lambda tenant: tenant.conversations.create(title=title, items=items))
        assert made.id not in self.chats
        chat = self.chats[made.id] = Chat(*person, title)
        chat.items = [(item.id, item.text) for item in items]

    @precondition(lambda self: self.chats)
    @rule(person=who, number=pick, added=st.lists(texts, min_size=1, max_size=4))
    def append(self, person: tuple[str, str], number: int, added: list[str]) -> None:
        chat_id = self.any_chat(number)
        chat = self.chats[chat_id]
        person = self.actor(person, chat, number)

        async def act(tenant: TenantContext) -> Any:
            return await tenant.conversations.append(chat_id, *(Message.user(text) for text in added))

        if not chat.owned_by(person):
            self.refused(person, act)
            return
        chat.items += [(item.id, item.text) for item in self.do(person, act)]

    @precondition(lambda self: self.chats)
    @rule(number=pick, batches=st.lists(texts, min_size=2, max_size=5))
    def append_at_once(self, number: int, batches: list[str]) -> None:
        chat_id = self.any_chat(number)
        chat = self.chats[chat_id]
        person = chat.tenant, chat.owner

        async def one(tenant: TenantContext, text: str) -> Any:
            return await tenant.conversations.append(chat_id, Message.user(text), Message.user(text))

        async def act(tenant: TenantContext) -> list[Any]:
            await asyncio.gather(*(one(tenant, text) for text in batches))
            return await tenant.conversations.all_items(chat_id)

        items = [(item.id, item.text) for item in self.do(person, act)]
        before, added = items[: len(chat.items)], items[len(chat.items) :]
        assert before == chat.items
        pairs = [added[at][1] for at in range(0, len(added), 2)]
        assert sorted(pairs) == sorted(batches)
        assert all(added[at][1] == added[at + 1][1] for at in range(0, len(added), 2))
        chat.items = items

    @precondition(lambda self: self.chats)
    @rule(person=who, number=pick, limit=st.integers(1, 5), order=st.sampled_from(["asc", "desc"]))
    def page(self, person: tuple[str, str], number: int, limit: int, order: Any) -> None:
        chat_id = self.any_chat(number)
        chat = self.chats[chat_id]

        async def act(tenant: TenantContext) -> list[tuple[str, str]]:
            found: list[tuple[str, str]] = []
            after = None
            while True:
                items = await tenant.conversations.items(chat_id, after=after, limit=limit, order=order)
                found += [(item.id, item.text) for item in items]
                if len(items) < limit:
                    return found
                after = items[-1].id

        if not chat.seen_by(person):
            self.refused(person, act)
            return
        assert self.do(person, act) == (chat.items if order == "asc" else chat.items[::-1])

    @precondition(lambda self: self.chats)
    @rule(
        person=who,
        number=pick,
        change=st.sampled_from(["share", "share", "unshare", "rename", "archive", "restore"]),
        text=texts,
    )
    def change(self, person: tuple[str, str], number: int, change: str, text: str) -> None:
        chat_id = self.any_chat(number)
        chat = self.chats[chat_id]
        person = self.actor(person, chat, number)
        wanted: dict[str, Any] = {
            "share": {"shared": True}, "unshare": {"shared": False}, "rename": {"title": text},
            "archive": {"archived": True}, "restore": {"archived": False},
        }[change]  # fmt: skip
        if not chat.owned_by(person):
            self.refused(person, lambda tenant: tenant.conversations.update(chat_id, **wanted))
            return
        shown = self.do(person, lambda tenant: tenant.conversations.update(chat_id, **wanted))
        chat.shared = wanted.get("shared", chat.shared)
        chat.archived = wanted.get("archived", chat.archived)
        if "title" in wanted:
            chat.metadata = {**chat.metadata, "title": text}
        assert (shown.shared, shown.archived, shown.metadata) == (chat.shared, chat.archived, chat.metadata)

    @precondition(lambda self: any(chat.items for chat in self.chats.values()))
    @rule(person=who, number=pick)
    def delete_item(self, person: tuple[str, str], number: int) -> None:
        chat_id = next(
            c for c in sorted(self.chats, key=lambda c: random.Random(f"{c}{number}").random()) if self.chats[c].items
        )
        chat = self.chats[chat_id]
        person = self.actor(person, chat, number)
        doomed = random.Random(number).choice(chat.items)
        if not chat.owned_by(person):
            self.refused(person, lambda tenant: tenant.conversations.delete_item(chat_id, doomed[0]))
            return
        self.do(person, lambda tenant: tenant.conversations.delete_item(chat_id, doomed[0]))
        chat.items.remove(doomed)
        self.refused(person, lambda tenant: tenant.conversations.item(chat_id, doomed[0]))

    @precondition(lambda self: len(self.chats) > 4)
    @rule(person=who, number=pick)
    def delete(self, person: tuple[str, str], number: int) -> None:
        chat_id = self.any_chat(number)
        person = self.actor(person, self.chats[chat_id], number)
        if not self.chats[chat_id].owned_by(person):
            self.refused(person, lambda tenant: tenant.conversations.delete(chat_id))
            return
        self.do(person, lambda tenant: tenant.conversations.delete(chat_id))
        del self.chats[chat_id]
        self.gone.append(chat_id)

    @precondition(lambda self: self.gone)
    @rule(person=who, number=pick)
    def touch_what_is_gone(self, person: tuple[str, str], number: int) -> None:
        chat_id = self.gone[number % len(self.gone)]
        self.refused(person, lambda tenant: tenant.conversations.retrieve(chat_id))
        self.refused(person, lambda tenant: tenant.conversations.append(chat_id, Message.user("x")))
        self.refused(person, lambda tenant: tenant.conversations.items(chat_id))

    @precondition(lambda self: self.nagaya is not None)
    @rule()
    def open_again(self) -> None:
        async def again() -> None:
            assert self.nagaya is not None
            await self.nagaya.close()
            self.nagaya = await Nagaya.open(settings=Settings(data=self.folder.name)).__aenter__()

        self.run(again())

    @invariant()
    def everybody_lists_its_own_and_nothing_else(self) -> None:
        if self.nagaya is None:
            return

        async def listed(person: tuple[str, str]) -> None:
            async def act(tenant: TenantContext) -> None:
                mine, cursor = [], None
                while True:
                    page = await tenant.conversations.list(after=cursor, limit=2, order="asc")
                    mine += [shown.id for shown in page.data]
                    cursor = page.cursor
                    if cursor is None:
                        break
                own = {chat_id for chat_id, chat in self.chats.items() if chat.owned_by(person)}
                assert len(mine) == len(own)
                assert set(mine) == own
                for archived in (True, False):
                    page = await tenant.conversations.list(archived=archived, limit=100)
                    assert {c.id for c in page.data} == {c for c in own if self.chats[c].archived == archived}
                for chat_id in [*self.chats, *self.gone[-3:]]:
                    seen = chat_id in self.chats and self.chats[chat_id].seen_by(person)
                    try:
                        shown = await tenant.conversations.retrieve(chat_id)
                    except NotFound:
                        assert not seen
                    else:
                        assert seen
                        assert shown.metadata == self.chats[chat_id].metadata
                try:
                    shared = {c.id for c in (await tenant.conversations.list(shared=True, limit=100)).data}
                except Forbidden:
                    assert person[1] == "mio"
                else:
                    assert shared == {c for c, chat in self.chats.items() if chat.shared and chat.tenant == person[0]}

            await self.inside(person, act)

        self.run(asyncio.wait_for(_all(listed), 30))


async def _all(work: Callable[[tuple[str, str]], Awaitable[None]]) -> None:
    await asyncio.gather(*map(work, PEOPLE))


TestTwoTenants = TwoTenants.TestCase
TestTwoTenants.settings = settings(
    max_examples=12,
    phases=[Phase.generate],
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
