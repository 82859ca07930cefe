"""An OpenAI data export becomes a user's conversations: the branch last seen, in order, and nothing unsaid is lost quietly."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nagaya.cli.main import run
from nagaya.context.items import Message
from nagaya.errors import MalformedJson, RecordsDiffer
from nagaya.integrations.openai_export import Imported, import_openai
from nagaya.settings import Settings
from nagaya.wiring import Nagaya


def _node(key: str, parent: str | None, role: str = "", parts: Any = None, kind: str = "text") -> dict[str, Any]:
    content = {"content_type": kind, "parts": parts} if kind != "code" else {"content_type": kind, "text": "1 + 1"}
    message = None if not role else {"id": key, "author": {"role": role, "name": None}, "content": content}
    return {"id": key, "parent": parent, "children": [], "message": message}


def _conversation(name: str, *nodes: dict[str, Any], current: str) -> dict[str, Any]:
    mapping = {node["id"]: node for node in nodes}
    return {"title": f"about {name}", "conversation_id": name, "id": name, "create_time": 1.7e9, "mapping": mapping,
            "current_node": current}  # fmt: skip


ROOF = _conversation(
    "roof",
    _node("root", None),
    _node("sys", "root", "system", [""]),
    _node("q", "sys", "user", ["Who mends the roof?"]),
    _node("old", "q", "assistant", ["Nobody."]),
    _node("code", "q", "assistant", kind="code"),
    _node("tool", "code", "tool", ["2"]),
    _node("new", "tool", "assistant", ["Sato does."]),
    _node("picture", "new", "user", [{"asset_pointer": "file-service://x"}, "And this?"], "multimodal_text"),
    current="picture",
)
LONG = _conversation(
    "long",
    *(_node(f"n{at}", f"n{at - 1}" if at else None, "user", [f"turn {at}"]) for at in range(130)),
    current="n129",
)
SAID = {
    "about roof": ["Who mends the roof?", "Sato does.", "And this?"],
    "about long": [f"turn {at}" for at in range(130)],
}


@pytest.fixture
async def nagaya(tmp_path: Path) -> AsyncIterator[Nagaya]:
    async with Nagaya.open(settings=Settings(data=str(tmp_path / "data"))) as opened:
        await opened.tenants.create("acme", name="Acme")
        yield opened


async def bring(nagaya: Nagaya, content: Any, user: str = "mio") -> Imported:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", user))) as tenant:
        return await import_openai(tenant, json.dumps(content).encode())


async def said(nagaya: Nagaya, user: str = "mio") -> dict[str, list[str]]:
    async with nagaya.session(await nagaya.enter(await nagaya.tenants.mint("acme", user))) as tenant:
        found = {}
        for chat in (await tenant.conversations.list()).data:
            texts: list[str] = []
            after = None
            while page := await tenant.conversations.items(chat.id, after=after, limit=100, order="asc"):
                texts += [item.text for item in page if isinstance(item, Message)]
                after = page[-1].id
            found[chat.metadata["title"]] = texts
        return found


async def test_the_branch_last_seen_comes_in_and_the_rest_is_counted(nagaya: Nagaya):
    done = await bring(nagaya, [ROOF, LONG])
    assert (done.conversations, done.items) == (2, 133)
    assert done.skipped == {"other_branch": 1, "empty": 1, "code": 1, "role_tool": 1, "part_without_text": 1}
    assert await said(nagaya) == SAID
    assert await said(nagaya, "tom") == {}


async def test_repeating_changes_nothing_and_goes_on_where_it_was(nagaya: Nagaya):
    half = {**LONG, "current_node": "n69"}
    await bring(nagaya, [half])
    await bring(nagaya, [ROOF, LONG])
    await bring(nagaya, [ROOF, LONG])
    assert await said(nagaya) == SAID
    await bring(nagaya, [ROOF], user="tom")
    assert await said(nagaya, "tom") == {"about roof": SAID["about roof"]}


async def test_what_was_changed_since_is_left_alone(nagaya: Nagaya):
    await bring(nagaya, [LONG])
    other = json.loads(json.dumps(LONG).replace("turn 7", "another 7"))
    with pytest.raises(RecordsDiffer):
        await bring(nagaya, [other])
    assert (await said(nagaya))["about long"] == SAID["about long"]


@pytest.mark.parametrize("content", [{}, [{}], [{"mapping": {}}], ["x"], [{"mapping": {"a": {"message": 1}}}]])
async def test_another_form_is_refused_before_anything_is_written(nagaya: Nagaya, content):
    with pytest.raises(MalformedJson):
        await bring(nagaya, content)
    assert await said(nagaya) == {}


async def test_a_branch_that_goes_in_circles_ends(nagaya: Nagaya):
    loop = _conversation("loop", _node("a", "b", "user", ["one"]), _node("b", "a", "user", ["two"]), current="a")
    assert (await bring(nagaya, [loop])).items == 2


def test_the_command_says_what_came_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "conversations.json").write_text(json.dumps([ROOF, LONG]))
    data = ["--data", str(tmp_path / "data"), "--json"]
    assert run(["tenant", "create", "acme", "--name", "Acme", *data]) == 0
    capsys.readouterr()
    arguments = ["tenant", "import", str(tmp_path / "conversations.json"), "--from", "openai", *data]
    assert run([*arguments, "--tenant", "acme", "--user", "mio"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["conversations"], shown["items"]) == (2, 133)
    assert run(arguments) == 2
