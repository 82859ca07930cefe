"""A small Azure on loopback: Cosmos DB, Key Vault and Entra ID under names of their own, over https.

One server answers for ``*.documents.test``, ``*.vault.test`` and ``login.test``, told apart by the host that a request
names, so that the vendor's clients run as they would against the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import uuid
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import trustme
from aiohttp import web

from nagaya.adapters import Surroundings
from nagaya.clouds.azure import AzureAccount, read_connection
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from parts import cosmos_server
from parts.cosmos_shim import KEY, CosmosShim
from parts.entra import TENANT, Entra
from parts.key_vault import Key, KeyVault

T = TypeVar("T")
CLIENT = "11111111-2222-3333-4444-555555555555"
CLIENT_SECRET = "the-client's-secret"
VAULTS = ("acme", "globex")


class AzureCloud:
    """What runs, and what a tenant would be told of it."""

    def __init__(self, port: int, authority: trustme.CA, cosmos: CosmosShim, vaults: dict[str, KeyVault], entra: Entra):
        self.port = port
        self.authority = authority
        self.cosmos = cosmos
        self.vaults = vaults
        self.entra = entra
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)
        self.loop: asyncio.AbstractEventLoop

    @property
    def account(self) -> str:
        """The Cosmos DB account's host."""
        return f"acme.documents.test:{self.port}"

    def secret(self, **fields: str) -> bytes:
        """The secret ``azure-connection`` of a service principal that may do what it needs to."""
        principal = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": CLIENT_SECRET}
        return json.dumps(principal | {"authority": f"https://login.test:{self.port}"} | fields).encode()

    def key_secret(self, **fields: str) -> bytes:
        """The same with an account key in place of a principal."""
        return json.dumps({"cosmos_key": KEY} | fields).encode()

    def surroundings(
        self,
        *,
        room: str = "acme",
        secret: bytes | None = None,
        regions: tuple[str, ...] = (),
        allowed: tuple[str, ...] | None = None,
        deadline_s: float = 10.0,
    ) -> Surroundings:
        async def to_loopback(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        async def secret_of(name: str) -> bytes | None:
            return secret if name == "azure-connection" else None

        hosts = ("login.test", "acme.documents.test", *(f"{name}.vault.test" for name in VAULTS))
        return Surroundings(
            settings=Settings(store_deadline_s=deadline_s),
            clock=SystemClock(),
            egress=EgressPolicy(hosts if allowed is None else allowed, resolver=to_loopback),
            room=room,
            regions=regions,
            secret=secret_of,
        )

    def open_account(self, secret: bytes | None = None, **more: Any) -> AzureAccount:
        """An account with the service principal, unless another secret is given."""
        secret = self.secret() if secret is None else secret
        return AzureAccount(read_connection(secret), self.surroundings(secret=secret, **more), trust=self.trust)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something in the servers' own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def new_database(self) -> str:
        """An empty database of a fresh name."""
        name = f"db-{uuid.uuid4().hex[:12]}"
        self.run(self.cosmos._forward("POST", "/dbs", {}, {"id": name}))
        return name

    def restore(self) -> None:
        """As it was at first; stored things stay."""
        self.cosmos.faults.clear()
        self.cosmos.denied.clear()
        self.cosmos.regions = ["Japan East"]
        self.cosmos.consistency = "BoundedStaleness"
        self.cosmos.writes_everywhere = False
        self.cosmos.page_items = 1000
        self.entra.lifetime_s = 3600
        self.entra.failing = None
        self.entra.clients[CLIENT] = CLIENT_SECRET
        for vault in self.vaults.values():
            vault.denied.clear()
            vault.failing.clear()
            vault.region = "japaneast"
            vault.secrets.clear()
            vault.deleted.clear()
            for key in vault.keys.values():
                key.enabled = True
                key.state = "there"


@contextlib.contextmanager
def running() -> Iterator[AzureCloud]:
    """The cloud in a thread of its own, until the end of the block."""
    with cosmos_server.running() as upstream:
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="azure-cloud", daemon=True)
        thread.start()

        def run(work: Coroutine[Any, Any, T]) -> T:
            return asyncio.run_coroutine_threadsafe(work, loop).result(30)

        cloud, runner = run(_start(upstream))
        cloud.loop = loop
        cloud.restore()
        try:
            yield cloud
        finally:
            run(cloud.cosmos.close())
            run(runner.cleanup())
            run(_end_the_rest())
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)
            loop.close()


async def _start(upstream: str) -> tuple[AzureCloud, web.AppRunner]:
    authority = trustme.CA()
    entra = Entra()
    cosmos = CosmosShim(upstream, entra.holder)
    vaults = {name: KeyVault(entra.holder) for name in VAULTS}
    vaults["acme"].keys["tenant-key"] = Key()

    async def answer(request: web.Request) -> web.StreamResponse:
        name, _, kind = request.host.partition(":")[0].partition(".")
        if kind == "documents.test":
            return await cosmos.answer(request)
        if kind == "vault.test" and name in vaults:
            return await vaults[name].answer(request)
        return await entra.answer(request)

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("*.documents.test", "*.vault.test", "login.test").configure_cert(context)
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    port = runner.addresses[0][1]
    return AzureCloud(port, authority, cosmos, vaults, entra), runner


async def _end_the_rest() -> None:
    """Such as answers that are still being held back."""
    rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def trust_file(cloud: AzureCloud, folder: Path) -> Path:
    """The stand-ins' authority as a file, for code that reads the machine's certificates."""
    path = folder / "authority.pem"
    cloud.authority.cert_pem.write_to_path(str(path))
    return path
