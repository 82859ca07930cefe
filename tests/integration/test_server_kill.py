"""``kill -9`` in the middle of concurrent appends: what was acknowledged is there, once, in order."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest

from support.planted import said
from support.server import RunningServer, running

WRITERS = 6


class Writer(threading.Thread):
    """Appends numbered items to its own conversation, and remembers what the server acknowledged."""

    def __init__(self, server: RunningServer, key: str, conversation: str, start: int) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._place = server.url, key, conversation, start
        self.stop = threading.Event()

    def run(self) -> None:
        url, key, conversation, number = self._place
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, timeout=30) as client:
            while not self.stop.is_set():
                text = f"{number:09d}"
                try:
                    reply = client.post(f"/v1/conversations/{conversation}/items", json={"items": [said(text)]})
                except httpx.TransportError:
                    return
                if reply.status_code == 200:
                    self.acknowledged.append(text)
                number += 1


def rounds(folder: Path, count: int) -> None:
    with running(folder) as server:
        for tenant in ("killed-one", "killed-two"):
            server.tenant(tenant)
        keys = [server.key(tenant) for tenant in ("killed-one", "killed-two")]
        homes = [
            (keys[n % 2], server.client(keys[n % 2]).post("/v1/conversations", json={}).json()["id"])
            for n in range(WRITERS)
        ]
        # Two writers share each of the first two tenants' first conversation: they compete for places.
        shared = [(keys[n], server.client(keys[n]).post("/v1/conversations", json={}).json()["id"]) for n in range(2)]
        acknowledged: dict[str, set[str]] = {conversation: set() for _, conversation in homes + shared}
        for number in range(count):
            writers = [Writer(server, *home, number * 100_000) for home in homes]
            writers += [Writer(server, *home, number * 100_000 + 50_000 * n) for home in shared for n in range(2)]
            for writer in writers:
                writer.start()
            deadline_s = time.monotonic() + 60
            while not all(writer.acknowledged for writer in writers) and time.monotonic() < deadline_s:
                time.sleep(0.01)
            time.sleep(0.05 + 0.03 * (number % 10))
            server.kill()
            for writer in writers:
                writer.stop.set()
                writer.join(60)
            server.start()
            for writer, (_, conversation) in zip(
                writers, [*homes, *(home for home in shared for _ in range(2))], strict=True
            ):
                assert writer.acknowledged, "nothing was acknowledged before the kill; the round proves nothing"
                acknowledged[conversation].update(writer.acknowledged)
            for key, conversation in homes + shared:
                found = read_all(server, key, conversation)
                assert len(found) == len(set(found)), "an item was recorded twice"
                assert acknowledged[conversation] <= set(found), "an acknowledged item was lost"
                if (key, conversation) in homes:
                    assert found == sorted(found), "items are out of order"
                for half in ((0, 49_999), (50_000, 99_999)):
                    own = [text for text in found if half[0] <= int(text) % 100_000 <= half[1]]
                    assert own == sorted(own), "one writer's items are out of order"
        for tenant in ("killed-one", "killed-two"):
            assert server.operate("GET", "/admin/audit/verify", tenant=tenant)["verified"]


def read_all(server: RunningServer, key: str, conversation: str) -> list[str]:
    found: list[str] = []
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        after: dict[str, str] = {}
        while True:
            page = client.get(
                f"/v1/conversations/{conversation}/items", params={"order": "asc", "limit": 100, **after}
            ).json()
            found += [item["content"][0]["text"] for item in page["data"]]
            if not page["has_more"]:
                return found
            after = {"after": page["last_id"]}


def test_a_killed_server_has_lost_no_acknowledged_item(tmp_path: Path):
    rounds(tmp_path, 3)


@pytest.mark.long
def test_a_hundred_times_killed_server_has_lost_no_acknowledged_item(tmp_path: Path):
    rounds(tmp_path, 100)
