"""Memories over HTTP: whose they are, and that no store holds them in clear."""

from __future__ import annotations

from pathlib import Path

from support.server import running

CANARY = "canary-7f3a91"


def test_two_users_and_two_tenants_do_not_see_each_others_memories(tmp_path: Path):
    with running(tmp_path) as server:
        server.tenant("acme")
        server.tenant("globex")
        mio = server.client(server.key("acme", "mio", "user"))
        others = [server.client(server.key("acme", "ken", "user")), server.client(server.key("globex", "mio", "user"))]
        said = {"messages": [{"role": "user", "content": f"My locker code is {CANARY}. What time is it?"}]}
        (made,) = mio.post("/v1/memories", json=said).raise_for_status().json()["data"]
        assert made["text"] == f"My locker code is {CANARY}."
        path = f"/v1/memories/{made['id']}"
        for other in others:
            replies = [
                other.get(path),
                other.get(f"{path}/history"),
                other.put(path, json={"text": "x"}),
                other.delete(path),
            ]
            assert [reply.status_code for reply in replies] == [404] * 4
            found = other.post("/v1/memories/search", json={"query": CANARY, "user": "mio"})
            assert found.status_code == 200
            assert CANARY not in found.text
            assert CANARY not in other.get("/v1/memories").text
        assert mio.post("/v1/memories/search", json={"query": "locker code"}).json()["data"][0]["id"] == made["id"]
        assert mio.put(path, json={"text": "changed"}).json()["text"] == "changed"
        assert [one["event"] for one in mio.get(f"{path}/history").json()["data"]] == ["ADD", "UPDATE"]
        assert mio.delete("/v1/memories").json()["deleted"] == 1
        assert mio.get(path).status_code == 404
        server.stop()
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or CANARY.encode() not in file.read_bytes(), file
