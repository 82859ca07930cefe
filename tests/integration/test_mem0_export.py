"""Memories of mem0 become memories of the same people, with their times and former texts, and every one is counted."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.cli.main import run
from nagaya.context import memory_import
from nagaya.context.memory_import import BroughtMemories
from nagaya.errors import Forbidden, InvalidValue, MalformedJson, RecordsDiffer, TooManyMemories
from nagaya.integrations.mem0_export import import_mem0
from nagaya.settings import Settings
from nagaya.wiring import Nagaya

TEA = {
    "id": "6b2f3c6e-0001", "memory": "Drinks green tea", "hash": "abc", "user_id": "mio", "agent_id": "barista",
    "metadata": {"cup": {"size": 2}}, "categories": ["food"], "created_at": "2025-03-01T09:00:00.250000-07:00",
    "updated_at": "2025-04-01T09:00:00Z", "role": "user", "actor_id": "mio-phone", "score": None,
}  # fmt: skip
ROOF = {
    "id": "2",
    "memory": "屋根は佐藤さんが直す",
    "user_id": "tom",
    "run_id": "r1",
    "created_at": "2025-03-02T00:00:00",
}
LOST = {"id": "3", "memory": "Nobody's", "agent_id": "barista", "created_at": None, "updated_at": None}
PAST = {**ROOF, "id": "4", "expiration_date": "2020-01-01"}
TERM = {**ROOF, "id": "5", "expiration_date": "2099-12-31", "structured_attributes": {"day": 1}}
LONG = {**ROOF, "id": "6", "memory": "x" * 8001}


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"))) as opened:
        await opened.tenants.create("acme", name="Acme")
        yield opened


async def bring(nagaya: Nagaya, content: Any, role: str = "tenant_admin", **options: Any) -> BroughtMemories:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "import", role))) as tenant:
        return await import_mem0(tenant, json.dumps(content).encode(), **options)


async def of(nagaya: Nagaya, user: str) -> dict[str, Any]:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", user))) as tenant:
        return {one.text: one for one in (await tenant.memories.list(limit=100)).data}


def history_of(file: Path, *rows: tuple[Any, ...]) -> Path:
    """A history database as mem0ai 2.2.1 makes it (``mem0.memory.storage.SQLiteManager``)."""
    with sqlite3.connect(file) as database:
        database.execute(
            "CREATE TABLE history (id TEXT PRIMARY KEY, memory_id TEXT, old_memory TEXT, new_memory TEXT, event TEXT,"
            " created_at DATETIME, updated_at DATETIME, is_deleted INTEGER, actor_id TEXT, role TEXT)"
        )
        for number, row in enumerate(rows):
            database.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?, 0, NULL, NULL)", (str(number), *row))
    return file


async def test_each_memory_is_its_users_with_its_labels_metadata_and_times(nagaya: Nagaya):
    done = await bring(nagaya, {"count": 2, "next": None, "previous": None, "results": [TEA, ROOF]})
    assert (done.memories, done.events, done.users, done.skipped) == (2, 2, 2, {})
    (tea,) = (await of(nagaya, "mio")).values()
    assert (tea.text, tea.user, tea.agent_id, tea.categories) == ("Drinks green tea", "mio", "barista", ["food"])
    assert tea.metadata == {"cup": {"size": 2}, "role": "user", "actor_id": "mio-phone"}
    assert (tea.created_at, tea.updated_at, tea.expires_at) == (1740844800, 1743498000, None)
    assert tea.written_by == "mem0"
    (roof,) = (await of(nagaya, "tom")).values()
    assert (roof.text, roof.run_id, roof.created_at) == ("屋根は佐藤さんが直す", "r1", 1740873600)
    assert await of(nagaya, "import") == {}


async def test_what_came_in_is_found_changed_and_deleted_like_any_memory(nagaya: Nagaya):
    await bring(nagaya, [TEA, ROOF])
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "tom"))) as tenant:
        (hit,) = (await tenant.memories.search("佐藤")).data
        await tenant.memories.update(hit.id, text="屋根は鈴木さんが直す")
        assert [event.event for event in await tenant.memories.history(hit.id)] == ["ADD", "UPDATE"]
        await tenant.memories.delete(hit.id)
    done = await bring(nagaya, [TEA, ROOF])
    assert (done.memories, done.skipped) == (1, {"deleted_here": 1})
    assert await of(nagaya, "tom") == {}


async def test_pages_lists_and_bare_memories_are_read_and_a_missing_page_is_told(nagaya: Nagaya):
    assert (await bring(nagaya, [{"count": 2, "results": [TEA]}, {"count": 2, "results": [ROOF]}])).memories == 2
    assert (await bring(nagaya, {"results": [TEA, ROOF]})).memories == 2
    for cut in ({"count": 2, "results": [TEA]}, {"next": "https://x/?page=2", "results": [TEA]}):
        with pytest.raises(InvalidValue, match="every page"):
            await bring(nagaya, cut)


async def test_what_does_not_come_in_is_counted_by_its_kind(nagaya: Nagaya):
    done = await bring(nagaya, [TEA, PAST, TERM, LONG])
    assert (done.memories, done.skipped) == (2, {"expired": 1, "unfit_text": 1, "field_structured_attributes": 1})
    (term,) = (await of(nagaya, "tom")).values()
    assert term.expires_at == 4102444800


async def test_a_memory_that_is_nobodys_needs_to_be_told_whose_it_becomes(nagaya: Nagaya):
    with pytest.raises(InvalidValue, match="user_id"):
        await bring(nagaya, [TEA, LOST])
    assert await of(nagaya, "mio") == {}
    await bring(nagaya, [TEA, LOST], user="mio")
    assert (await of(nagaya, "mio"))["Nobody's"].created_at == 0


async def test_former_texts_come_from_the_history_database(nagaya: Nagaya, tmp_path: Path):
    at, later = "2025-03-01T16:00:00.250000+00:00", "2025-04-01T09:00:00+00:00"
    file = history_of(
        tmp_path / "history.db",
        (TEA["id"], None, "Drinks black tea", "ADD", at, None),
        (TEA["id"], "Drinks black tea", "Drinks green tea", "UPDATE", at, later),
        (ROOF["id"], None, "another text", "ADD", at, None),
        ("gone", None, "secret of old", "ADD", at, None),
        ("gone", "secret of old", None, "DELETE", at, later),
        ("elsewhere", None, "never exported", "ADD", at, None),
    )
    done = await bring(nagaya, [TEA, ROOF], history=file)
    assert (done.memories, done.events) == (2, 3)
    assert done.skipped == {"history_of_another_text": 1, "history_of_deleted": 2, "history_without_memory": 1}
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", "mio"))) as tenant:
        (tea,) = (await tenant.memories.list()).data
        events = [(one.event, one.at, one.before, one.after) for one in await tenant.memories.history(tea.id)]
    assert events == [
        ("ADD", 1740844800, None, "Drinks black tea"),
        ("UPDATE", 1743498000, "Drinks black tea", "Drinks green tea"),
    ]
    assert (await bring(nagaya, [TEA, ROOF], history=file)).memories == 2


async def test_what_was_changed_since_is_left_alone(nagaya: Nagaya):
    await bring(nagaya, [TEA])
    with pytest.raises(RecordsDiffer, match=TEA["id"]):
        await bring(nagaya, [{**TEA, "memory": "Drinks coffee"}])
    assert list(await of(nagaya, "mio")) == ["Drinks green tea"]


async def test_only_an_administrator_keeps_memories_for_others(nagaya: Nagaya):
    for role in ("user", "member"):
        with pytest.raises(Forbidden):
            await bring(nagaya, [TEA], role)
    assert await of(nagaya, "mio") == {}


async def test_too_many_are_refused_before_anything_is_written(nagaya: Nagaya, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory_import, "MAX_MEMORIES", 2)
    with pytest.raises(TooManyMemories):
        await bring(nagaya, [TEA, *({**ROOF, "id": str(at)} for at in range(3))])
    assert await of(nagaya, "mio") == {}


@pytest.mark.parametrize(
    "content", [{}, 5, [5], [{"id": "1"}], {"results": 7}, [TEA, TEA], [{**TEA, "created_at": "yesterday"}], "x"]
)
async def test_another_form_is_refused_before_anything_is_written(nagaya: Nagaya, content: Any):
    with pytest.raises(MalformedJson):
        await bring(nagaya, content)
    assert await of(nagaya, "mio") == {}


async def test_a_file_that_is_no_history_is_refused(nagaya: Nagaya, tmp_path: Path):
    (tmp_path / "text").write_text("no database")
    for name in ("text", "absent"):
        with pytest.raises(InvalidValue, match="history"):
            await bring(nagaya, [TEA], history=tmp_path / name)
    assert not (tmp_path / "absent").exists()


def test_the_command_says_what_came_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "memories.json").write_text(json.dumps({"results": [TEA, ROOF, PAST]}))
    data = ["--data", str(tmp_path / "data"), "--json"]
    assert run(["tenant", "create", "acme", "--name", "Acme", *data]) == 0
    capsys.readouterr()
    arguments = ["tenant", "import", str(tmp_path / "memories.json"), "--from", "mem0", "--tenant", "acme", *data]
    assert run(arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"memories": 2, "events": 2, "users": 2, "skipped": {"expired": 1}}
