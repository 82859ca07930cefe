"""Memories over HTTP by mem0's own client: one message remembered, one question searched. Run:
``python -m benchmarks.memories [--quick]``.

The tenant has a model that only counts what it is asked. What people say of themselves in the plain is taken down by rule, and
the model is not asked; to show that it would be, the last message leaves the rules in doubt. There is no yardstick: mem0's own
service asks a model for every message.
"""

from __future__ import annotations

import statistics
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from benchmarks.figures import Row, at_most, main, p99, row, us
from benchmarks.servers import beside_the_load, serving
from nagaya import Nagaya
from nagaya.settings import Settings
from support.mem0_client import MemoryClient

TOWNS = ("Nara", "Kyoto", "Sapporo", "Sendai", "Kobe", "Naha", "Otaru", "Matsue", "Hakodate", "Uji")
DOUBTFUL = "Since my brother moved in, mornings went differently for us and the piano stayed closed."


class Counting(ThreadingHTTPServer):
    """A model that answers nothing of use and counts how often it is asked."""

    daemon_threads = True
    asked = 0

    def __init__(self) -> None:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None: ...

            def do_GET(self) -> None:
                self._say(b'{"object":"list","data":[{"id":"counting","object":"model"}]}')

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                server.asked += 1
                self._say(
                    b'{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"counting","choices":[{"index":0,'
                    b'"message":{"role":"assistant","content":"[]"},"finish_reason":"stop"}],'
                    b'"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
                )

            def _say(self, body: bytes) -> None:
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


async def prepare(folder: Path, model_port: int) -> str:
    """A tenant with that model, and a user's token."""
    url = f"openai+http://127.0.0.1:{model_port}/v1#counting"
    async with Nagaya.open(settings=Settings(data=str(folder), allowed_hosts=("127.0.0.1",))) as nagaya:
        await nagaya.tenants.create("bench-memories", name="Bench", models=[url])
        return await nagaya.tenants.mint("bench-memories", "mio")


async def measure(folder: Path, quick: bool) -> list[Row]:
    """Add and search, and how often the model was asked meanwhile."""
    count = 100 if quick else 500
    adds, searches = [], []
    model = Counting()
    token = await prepare(folder / "data", model.server_address[1])
    with serving(folder / "data", NAGAYA_ALLOWED_HOSTS="127.0.0.1") as (port, _):
        beside_the_load()
        client = MemoryClient(api_key=token, host=f"http://127.0.0.1:{port}")
        before = model.asked
        for number in range(count):
            said = f"I work at the {number}th house in {TOWNS[number % len(TOWNS)]}."
            began_s = time.perf_counter()
            added = client.add([{"role": "user", "content": said}], user_id="mio")
            adds.append(time.perf_counter() - began_s)
            assert added["results"][0]["memory"] == said
        for number in range(count):
            began_s = time.perf_counter()
            found = client.search(f"Who works in {TOWNS[number % len(TOWNS)]}?", filters={"user_id": "mio"}, top_k=5)
            searches.append(time.perf_counter() - began_s)
            assert len(found["results"]) == 5
        asked = model.asked - before
        client.add([{"role": "user", "content": DOUBTFUL}], user_id="mio")
        for _ in range(100):
            if model.asked > before + asked:
                break
            time.sleep(0.1)
        else:
            raise RuntimeError("the model is never asked, so that it was not says nothing")
        client.client.close()
    model.shutdown()
    return [
        Row(
            "mem0's client: add, by rule: p50",
            "–",
            us(statistics.median(adds)),
            "–",
            f"p99 {us(p99(adds))}; of {count}",
        ),
        Row(
            f"mem0's client: search, five of {count} memories: p50",
            "–",
            us(statistics.median(searches)),
            "–",
            f"p99 {us(p99(searches))}; by words",
        ),
        row(
            f"mem0's client: how often the tenant's model was asked for those {count}",
            "–",
            at_most(float(asked), 0, "{:.0f}"),
            "and once for a message that the rules leave open",
        ),
    ]


if __name__ == "__main__":
    main(measure)
