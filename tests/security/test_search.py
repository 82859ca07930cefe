"""The attack table's rows 8, 9, 11 and 22, tried on ``GET /v1/search``: nobody finds what is not theirs to read."""

from __future__ import annotations

import time

import pytest

from support.naughty import NAUGHTY
from support.planted import Planted, assert_error, assert_no_canary, said


def found(client, q: str, **params) -> list[dict]:
    reply = client.get("/v1/search", params={"q": q, "limit": 100, **params})
    assert reply.status_code == 200, reply.text
    return reply.json()["data"]


def test_row_08_each_finds_its_own_words_and_nobody_elses(acme: Planted, globex: Planted):
    for here, there in ((acme, globex), (globex, acme)):
        mine = found(here.as_user, here.canary)
        assert here.conversation in {result.get("conversation_id") for result in mine}
        assert all(here.canary in result["snippet"] for result in mine[:3])
        # The canaries of two tenants have words in common: they find what those words are in, at home.
        for client in (here.as_user, here.as_other, here.as_member, here.as_admin):
            reply = client.get("/v1/search", params={"q": there.canary, "limit": 100})
            assert_no_canary(reply.content, of=there)
        for client in (here.as_other, here.as_member):
            reply = client.get("/v1/search", params={"q": here.canary})
            assert reply.json()["data"] == []
            assert_no_canary(reply.content, of=here)


def test_row_09_a_cursor_of_another_search_is_refused_like_a_made_up_one(acme: Planted, globex: Planted):
    def page(client, **params):
        return client.get("/v1/search", params={"q": "canary", "limit": 1, **params})

    mine, theirs = (page(tenant.as_user).json()["next_cursor"] for tenant in (acme, globex))
    assert page(acme.as_user, after=mine).status_code == 200
    made_up = page(acme.as_user, after=mine[:-8] + "AAAAAAAA")
    assert_error(made_up, 404)
    for client, after in (
        (acme.as_user, theirs),
        (acme.as_other, mine),
        (acme.as_admin, mine),
        (acme.as_user, acme.cursor),
    ):
        assert page(client, after=after).content == made_up.content


@pytest.mark.parametrize(
    "q",
    [
        "*",
        "%",
        "_",
        "canary*",
        "* OR *",
        "' OR 1=1 --",
        "tenant:globex canary",
        "NEAR(canary)",
        "canary\x00",
        ".*",
        "^",
    ],
)
def test_row_11_operators_and_escapes_in_a_query_are_words_like_others(acme: Planted, globex: Planted, q: str):
    for client in (acme.as_other, acme.as_member):
        reply = client.get("/v1/search", params={"q": q})
        assert reply.status_code == 200
        assert_no_canary(reply.content, of=globex)
        assert_no_canary(reply.content, of=acme)


def test_row_22_whoever_loses_sight_of_a_conversation_no_longer_finds_it(acme: Planted):
    made = acme.post("/v1/conversations", {"items": [said("quokka of the department")]})["id"]
    acme.post(f"/v1/conversations/{made}", {"shared": True})
    assert [result["conversation_id"] for result in found(acme.as_member, "quokka")] == [made]
    assert not found(acme.as_other, "quokka")
    acme.post(f"/v1/conversations/{made}", {"shared": False})
    assert not found(acme.as_member, "quokka")
    acme.as_user.delete(f"/v1/conversations/{made}").raise_for_status()
    assert not found(acme.as_user, "quokka")


@pytest.fixture(scope="module")
def kept(acme: Planted, globex: Planted) -> list[tuple[Planted, str]]:
    """In both tenants a memory and a document of the user's, each with a canary; with the ids of the vector stores."""
    made = []
    for here in (acme, globex):
        here.post("/v1/memories", {"text": f"I keep {here.canary}-memory"})
        file = here.as_user.post(
            "/v1/files",
            files={"file": ("kept.md", f"# Kept\n\n{here.canary}-document\n")},
            data={"purpose": "assistants"},
        ).json()["id"]
        store = here.post("/v1/vector_stores", {"name": here.canary, "file_ids": [file]})["id"]
        ends = time.monotonic() + 120
        while here.as_user.get(f"/v1/vector_stores/{store}").json()["status"] != "completed":
            assert time.monotonic() < ends
            time.sleep(0.1)
        made.append((here, store))
    return made


def test_row_08_memories_and_documents_are_found_by_their_owner_alone(kept):
    for here, _ in kept:
        mine = found(here.as_user, here.canary)
        assert {"conversation", "memory", "document"} <= {result["type"] for result in mine}
        for client in (here.as_other, here.as_member, here.as_admin):
            reply = client.get("/v1/search", params={"q": here.canary, "types": "memories,documents"})
            assert reply.json()["data"] == []
        for there, _ in kept:
            if there is not here:
                for client in (here.as_user, here.as_other, here.as_member, here.as_admin):
                    reply = client.get("/v1/search", params={"q": there.canary, "limit": 100})
                    assert_no_canary(reply.content, of=there)


def test_row_09_a_cursor_of_a_search_through_other_types_is_refused_like_a_made_up_one(kept):
    (here, _), (there, _) = kept

    def page(client, types, **params):
        return client.get("/v1/search", params={"q": "canary", "limit": 1, "types": types, **params})

    mine = page(here.as_user, "conversations,documents").json()["next_cursor"]
    assert page(here.as_user, "documents,conversations", after=mine).status_code == 200
    made_up = page(here.as_user, "documents", after="AAAA")
    assert_error(made_up, 404)
    for client, types in ((here.as_user, "documents"), (there.as_user, "conversations,documents")):
        assert page(client, types, after=mine).content == made_up.content


def test_row_22_whoever_loses_sight_of_a_vector_store_no_longer_finds_what_it_says(kept):
    here, store = kept[0]
    asked = f"{here.canary}-document"
    here.post(f"/v1/vector_stores/{store}", {"shared": True})
    assert store in {result["vector_store_id"] for result in found(here.as_member, asked, types="documents")}
    assert not found(here.as_other, asked, types="documents")
    here.post(f"/v1/vector_stores/{store}", {"shared": False})
    assert not found(here.as_member, asked, types="documents")


def test_naughty_queries_are_answered_or_refused_but_never_fail(acme: Planted):
    for q in (*NAUGHTY, "x" * 10_000, "検索" * 500):
        reply = acme.as_user.get("/v1/search", params={"q": q})
        assert reply.status_code in (200, 400), (q, reply.text)
    for raw in ("q=%ed%a0%80", "q=%00", "q=%ff", "q=a&q=b", "q", "", "q=a&after=%00", "q=a&types=%00", "q=a&limit=0"):
        assert acme.as_user.get(f"/v1/search?{raw}").status_code in (200, 400, 404), raw


def test_refusals_say_what_is_wrong_in_two_languages(acme: Planted):
    missing = acme.as_user.get("/v1/search", headers={"accept-language": "ja"})
    assert_error(missing, 400, "missing_required_parameter")
    assert "パラメーター" in missing.json()["error"]["message"]
    unknown = acme.as_user.get("/v1/search", params={"q": "x", "types": "conversations,dreams"})
    assert_error(unknown, 400, "invalid_value")
    assert "dreams" in unknown.json()["error"]["message"]
    assert acme.server.client("nk_wrong").get("/v1/search", params={"q": "x"}).status_code == 401
