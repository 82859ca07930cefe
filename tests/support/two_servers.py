"""Two servers and a load balancer over one folder, and browsers that sign in with a foreign issuer's id tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from nagaya.testing.identity import IssuerKey, KeyServer
from support.balancer import Balancer, balancing
from support.server import RunningServer

ISSUER = "https://issuer.example"
KEY = IssuerKey("k1", algorithm="ES256")

AT_WORST_S = 30.0
"""Within so long every server refuses what was revoked, told of it or not."""


class House:
    def __init__(self, servers: list[RunningServer], balancer: Balancer) -> None:
        self.servers = servers
        self.balancer = balancer

    def browser(self, server: RunningServer | None = None) -> httpx.Client:
        """A browser with cookies of its own that talks to one server, or to the balancer, which sends each request to
        the next one."""
        url = self.balancer.url if server is None else server.url
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.Client(base_url=url, timeout=30, limits=limits)


@contextlib.contextmanager
def house(folder: Path, environment: Mapping[str, str]) -> Iterator[House]:
    """Two servers with this environment, the tenant ``acme`` bound to the issuer, and a balancer before them."""
    with issuer_keys() as keys_url:
        servers = [RunningServer(folder, {"NAGAYA_ALLOWED_HOSTS": "127.0.0.1", **environment}) for _ in range(2)]
        try:
            for server in servers:
                server.start()
            servers[0].tenant("acme")
            binding = {
                "issuer": ISSUER, "provider": "oidc", "audiences": ["app"], "jwks_url": keys_url,
                "algorithms": ["ES256"], "accept_id_tokens": True,
            }  # fmt: skip
            servers[0].operate("POST", "/admin/tenants/acme/issuers", binding)
            with balancing(*(server.port for server in servers)) as balancer:
                yield House(servers, balancer)
        finally:
            for server in servers:
                server.close()


@contextlib.contextmanager
def issuer_keys() -> Iterator[str]:
    """Where a foreign issuer publishes its keys; served by a thread."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        async with KeyServer() as server:
            urls.append(server.publish(KEY))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(5)
    loop.close()


def id_token(user: str = "mio", **claims: Any) -> str:
    now_s = int(time.time())
    return KEY.sign(
        {"iss": ISSUER, "aud": "app", "sub": user, "nonce": "n", "iat": now_s, "exp": now_s + 600, **claims}
    )


def sign_in(browser: httpx.Client, user: str = "mio") -> dict[str, Any]:
    reply = browser.post("/v1/session", json={"id_token": id_token(user)})
    assert reply.status_code == 201, reply.text
    browser.headers["x-csrf-token"] = reply.json()["csrf_token"]
    shown: dict[str, Any] = reply.json()
    return shown


def until(true: Callable[[], bool], *, within_s: float) -> float:
    """Seconds until it is true."""
    began_s = time.monotonic()
    while not true():
        assert time.monotonic() - began_s < within_s, f"not within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - began_s
