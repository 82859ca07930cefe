"""mem0's own clients, as they are, on a running server: the memories are those of ``/v1/memories``."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator

import httpx
import pytest

from support.mem0_client import AsyncMemoryClient, MemoryClient, refusals
from support.server import RunningServer

CANARY = "canary-51c2e7"
Client = Callable[..., MemoryClient]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """A client of a user of ``mem0-one`` (or another tenant), closed at the end."""
    for tenant in ("mem0-one", "mem0-two"):
        server.tenant(tenant)
    made = []

    def of(user: str, role: str = "user", tenant: str = "mem0-one") -> MemoryClient:
        made.append(MemoryClient(api_key=server.key(tenant, user, role), host=server.url))
        return made[-1]

    yield of
    for each in made:
        each.client.close()


def texts(found: dict) -> list[str]:
    return [one["memory"] for one in found["results"]]


def test_a_memory_is_added_found_changed_and_deleted(client: Client, server: RunningServer):
    mio = client("mio")
    added = mio.add(
        [
            {"role": "user", "content": "I live in Nara. What is the weather?"},
            {"role": "assistant", "content": "I live in the cloud."},
        ],
        user_id="mio",
        metadata={"source": "chat"},
        custom_categories=None,
    )
    assert added["status"] == "SUCCEEDED"
    (made,) = added["results"]
    assert (made["memory"], made["event"]) == ("I live in Nara.", "ADD")
    found = mio.get(made["id"])
    assert (found["memory"], found["user_id"], found["metadata"]) == ("I live in Nara.", "mio", {"source": "chat"})
    assert datetime.datetime.fromisoformat(found["created_at"]).tzinfo is not None
    (hit,) = mio.search("Where does mio live?", filters={"user_id": "mio"}, top_k=1)["results"]
    assert hit["id"] == made["id"]
    assert 0 < hit["score"] <= 1
    assert mio.search("Where does mio live?", filters={"user_id": "mio"}, threshold=1.0)["results"] == []
    changed = mio.update(made["id"], text="I live in Kyoto.", metadata={"source": "form"})
    assert (changed["memory"], changed["metadata"]) == ("I live in Kyoto.", {"source": "form"})
    events = [(one["event"], one["old_memory"], one["new_memory"]) for one in mio.history(made["id"])]
    assert events == [("ADD", None, "I live in Nara."), ("UPDATE", "I live in Nara.", "I live in Kyoto.")]
    own = server.client(mio.api_key).get(f"/v1/memories/{made['id']}").json()
    assert (own["text"], own["written_by"]) == ("I live in Kyoto.", "rules")
    mio.delete(made["id"], delete_linked=True)
    with pytest.raises(refusals.MemoryNotFoundError, match="No such memory"):
        mio.get(made["id"])
    assert [(one["event"], one["new_memory"]) for one in mio.history(made["id"])] == [("DELETE", None)]


def test_what_is_not_to_be_inferred_is_kept_as_it_is(client: Client):
    ken = client("ken")
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "content": [{"type": "text", "text": "4"}]},
    ]
    assert texts(ken.add(said, infer=False, filters={"user_id": "ken", "agent_id": "sums"})) == ["What is 2 + 2?", "4"]
    assert ken.add(said)["results"] == []
    assert ken.add("屋根の修理は田中工務店です", infer=False, run_id="r1")["results"][0]["memory"].startswith("屋根")
    assert texts(ken.search("屋根の修理は誰ですか", filters={"run_id": "r1"})) == ["屋根の修理は田中工務店です"]


def test_pages_filters_and_dates(client: Client):
    yui = client("yui")
    for number in range(5):
        labels = {"agent_id": "even" if number % 2 == 0 else "odd"}
        yui.add(
            f"note {number}",
            infer=False,
            metadata={"n": number, "star": number == 3},
            timestamp=86_400 * (number + 1),
            **labels,
        )
    page = yui.get_all(filters={"user_id": "yui"}, page=1, page_size=2)
    assert (page["count"], texts(page), page["previous"]) == (5, ["note 4", "note 3"], None)
    assert texts(yui.client.post(page["next"], json={"filters": {"user_id": "yui"}}).json()) == ["note 2", "note 1"]
    last = yui.get_all(filters={"user_id": "yui"}, page=3, page_size=2)
    assert (texts(last), last["next"]) == (["note 0"], None)
    for filters, wanted in (
        ({"agent_id": "odd"}, ["note 3", "note 1"]),
        ({"AND": [{"user_id": "yui"}, {"agent_id": {"in": ["odd"]}}, {"metadata": {"star": True}}]}, ["note 3"]),
        ({"OR": [{"metadata": {"n": {"gte": 4}}}, {"keywords": {"icontains": "NOTE 0"}}]}, ["note 4", "note 0"]),
        ({"NOT": [{"agent_id": "even"}, {"metadata": {"n": 1}}]}, ["note 3"]),
        ({"created_at": {"gte": "1970-01-03", "lt": "1970-01-05T00:00:00Z"}}, ["note 3", "note 2", "note 1"][1:]),
        ({"metadata": {"n": True}}, []),
        ({"run_id": "*"}, []),
        ({"user_id": "*"}, ["note 4", "note 3", "note 2", "note 1", "note 0"]),
    ):
        assert texts(yui.get_all(filters=filters)) == wanted, filters
    assert texts(yui.get_all(start_date="1970-01-05", end_date="1970-01-05")) == ["note 3"]
    assert set(yui.search("note", fields=["id", "memory"], top_k=1)["results"][0]) == {"id", "memory"}
    tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=1)
    (made,) = yui.add("The pass is 8812", infer=False, expiration_date=tomorrow.isoformat())["results"]
    assert yui.get(made["id"])["expiration_date"] == tomorrow.isoformat()
    assert yui.update(made["id"], expiration_date=None)["expiration_date"] is None
    with pytest.raises(refusals.ValidationError, match="expiration_date"):
        yui.update(made["id"], expiration_date="2020-02-30")


def test_deleting_all_entities_and_batches(client: Client):
    rin = client("rin")
    ids = [rin.add(f"note {n}", infer=False, app_id="notes")["results"][0]["id"] for n in range(3)]
    rin.batch_update([{"memory_id": ids[0], "text": "changed"}, {"memory_id": ids[1], "metadata": {"a": 1}}])
    assert rin.get(ids[0])["memory"] == "changed"
    with pytest.raises(refusals.MemoryNotFoundError):
        rin.batch_delete([{"memory_id": ids[1]}, {"memory_id": "mem_" + "0" * 32}])
    rin.batch_delete([{"memory_id": ids[1]}])
    assert rin.get_all()["count"] == 2
    found = {(one["type"], one["name"]): one["total_memories"] for one in rin.users()["results"]}
    assert found == {("user", "rin"): 2, ("app", "notes"): 2}
    with pytest.raises(refusals.ValidationError, match="user_id"):
        rin.delete_all()
    rin.add("something else", infer=False)
    rin.delete_all(filters={"AND": [{"app_id": "notes"}, {"keywords": {"contains": "changed"}}]})
    assert sorted(texts(rin.get_all())) == ["note 2", "something else"]
    rin.delete_all(app_id="notes")
    assert texts(rin.get_all()) == ["something else"]
    rin.delete_users(user_id="rin")
    assert rin.get_all()["count"] == 0
    with pytest.raises(ValueError, match="No entities"):
        rin.reset()


def test_a_user_reaches_no_other_users_memories_and_an_administrator_those_of_its_tenant(client: Client):
    sora, nao, chief = client("sora"), client("nao"), client("chief", "tenant_admin")
    stranger = client("sora", "tenant_admin", "mem0-two")
    memory_id = sora.add(f"My locker code is {CANARY}.")["results"][0]["id"]
    absent = "mem_" + memory_id.removeprefix("mem_")[::-1]
    for other in (nao, stranger):
        for refused in (
            other.get,
            other.history,
            other.delete,
            lambda one, other=other: other.update(one, text="mine"),
        ):
            messages = set()
            for one in (memory_id, absent):
                with pytest.raises(refusals.MemoryNotFoundError) as told:
                    refused(one)
                messages.add(told.value.message)
            assert len(messages) == 1
        with pytest.raises(refusals.MemoryNotFoundError):
            other.batch_delete([{"memory_id": memory_id}])
        for filters in (
            {"user_id": "sora"},
            {"user_id": "*"},
            {"OR": [{"user_id": "sora"}, {"agent_id": "x"}]},
            {"memory_ids": [memory_id]},
            {"NOT": [{"user_id": "nao"}]},
        ):
            assert CANARY not in str(other.get_all(filters=filters)), filters
            assert CANARY not in str(other.search(f"locker {CANARY}", filters=filters)), filters
        assert CANARY not in str(other.users())
    assert "sora" not in [one["name"] for one in nao.users()["results"]]
    for refused in (
        lambda: nao.add("planted", user_id="sora"),
        lambda: nao.delete_all(user_id="sora"),
        lambda: nao.delete_users(user_id="sora"),
    ):
        with pytest.raises(refusals.MemoryNotFoundError, match="No such user"):
            refused()
    nao.delete_all(user_id="*")
    chief.add("Sora's desk is on the third floor.", user_id="sora", infer=False)
    assert len(texts(sora.get_all())) == 2
    assert memory_id in [one["id"] for one in chief.get_all(filters={"user_id": "*"})["results"]]
    assert chief.search(CANARY)["results"] == []
    assert {"type": "user", "name": "sora"}.items() <= next(
        one for one in chief.users()["results"] if one["name"] == "sora"
    ).items()
    stranger.delete_all(user_id="*")
    chief.delete_users(user_id="sora")
    assert sora.get_all()["count"] == 0


def test_what_is_not_offered_is_refused_by_name(client: Client):
    mio = client("mio")
    for call, word in (
        (lambda: mio.get_webhooks("p"), "webhooks"),
        (lambda: mio.create_webhook("https://example.com", "n", "p", ["memory_add"]), "webhooks"),
        (lambda: mio.update_webhook(1, name="n"), "webhooks"),
        (lambda: mio.delete_webhook(1), "webhooks"),
        (lambda: mio.create_memory_export("{}"), "exports"),
        (lambda: mio.get_memory_export(user_id="mio"), "exports"),
        (lambda: mio.get_summary(), "summaries"),
        (lambda: mio.feedback("mem_1", "POSITIVE"), "ratings"),
        (lambda: mio.get_profile("mio"), "profiles"),
        (lambda: mio.generate_profile("mio"), "profiles"),
        (lambda: mio.get_profile_settings(), "profiles"),
        (lambda: mio.update_profile_settings(True), "profiles"),
        (lambda: mio.sample_profiles(), "profiles"),
        (lambda: mio.get_profile_job("j"), "profiles"),
        (lambda: mio.project.get(), "projects"),
        (lambda: mio.project.update(custom_instructions="x"), "projects"),
        (lambda: mio.project.create("x"), "projects"),
        (lambda: mio.project.delete(), "projects"),
        (lambda: mio.project.get_members(), "projects"),
        (lambda: mio.project.add_member("a@example.com"), "projects"),
        (lambda: mio.project.update_member("a@example.com", "OWNER"), "projects"),
        (lambda: mio.project.remove_member("a@example.com"), "projects"),
        (lambda: mio.get_project(), "projects"),
        (lambda: mio.update_project(custom_instructions="x"), "projects"),
        (lambda: mio.search("x", rerank=True), "rerank"),
        (lambda: mio.search("x", reference_date="2026-01-01"), "reference_date"),
        (lambda: mio.search("x", metadata={"a": 1}), "metadata"),
        (lambda: mio.search("x", keyword_search=False), "keyword_search"),
        (lambda: mio.get_all(show_expired=True), "show_expired"),
        (lambda: mio.add("x", custom_instructions="none"), "custom_instructions"),
        (lambda: mio.add("x", structured_data_schema={}), "structured_data_schema"),
        (lambda: mio.add("x", filters={"color": "red"}), "filters.color"),
        (lambda: mio.add("x", user_id="mio", filters={"user_id": "ken"}), "filters.user_id"),
        (lambda: mio.add("x", enable_graph=True), "enable_graph"),
        (lambda: mio.add([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]), "content"),
        (lambda: mio.get_all(filters={"color": "red"}), "filters.color"),
        (lambda: mio.get_all(filters={"agent_id": {"like": "x"}}), "filters.agent_id"),
    ):  # fmt: skip
        with pytest.raises(refusals.ValidationError) as told:
            call()
            pytest.fail(f"{word} was taken")
        assert word in told.value.message


def test_a_wrong_key_is_told_in_words(server: RunningServer):
    # A client of ours, since mem0 leaves its own open when it is refused.
    with httpx.Client() as refused, pytest.raises(ValueError, match=r"Error: .*(credential|key|token)"):
        MemoryClient(api_key="nope", host=server.url, client=refused)


async def test_the_asynchronous_client_does_the_same(client: Client, server: RunningServer):
    key = client("aki").api_key
    async with AsyncMemoryClient(api_key=key, host=server.url) as aki:
        (made,) = (await aki.add("I prefer window seats.", user_id="aki"))["results"]
        assert texts(await aki.search("Which seats?", filters={"user_id": "aki"})) == ["I prefer window seats."]
        assert texts(await aki.get_all(filters={"user_id": "aki"}, page=1, page_size=1)) == ["I prefer window seats."]
        assert (await aki.update(made["id"], metadata={"a": 1}))["metadata"] == {"a": 1}
        assert [one["event"] for one in await aki.history(made["id"])] == ["ADD"]
        assert (await aki.users())["results"][0]["name"] == "aki"
        await aki.batch_update([{"memory_id": made["id"], "text": "I prefer aisle seats."}])
        assert (await aki.get(made["id"]))["memory"] == "I prefer aisle seats."
        with pytest.raises(refusals.ValidationError, match="webhooks"):
            await aki.get_webhooks("p")
        await aki.delete(made["id"])
        await aki.add("x", infer=False, run_id="r")
        await aki.delete_all(run_id="r")
        await aki.add("y", infer=False)
        await aki.reset()
        assert (await aki.get_all())["count"] == 0
