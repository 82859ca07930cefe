"""Azure Blob Storage's stand-in, over https on a free port of loopback, in memory, for as long as a test session lasts.

Installed once from the lock file beside this module into ``.parts/azurite``. It takes any bearer token that says the
right things about itself, so the tokens are made here; what it does not have (versioning, soft delete, immutability)
it leaves out silently.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import ssl
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trustme
from azure.core.credentials import AccessToken
from azure.storage.blob.aio import BlobServiceClient

from nagaya.adapters import Surroundings
from nagaya.blobs.azblob import AzureBlobHouse, azure_place
from nagaya.clouds.azure import AzureAccount
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.settings import Settings
from parts.environments import npm_script
from parts.ports import free_port, stopped_at_the_end, wait_for

ACCOUNT = "devstoreaccount1"
CONTAINER = "blobs"


class Azurite:
    """A running stand-in with one container."""

    def __init__(self, port: int, authority: trustme.CA) -> None:
        self.port = port
        self.trust = ssl.create_default_context()
        authority.configure_trust(self.trust)

    def new_url(self) -> str:
        """An address with a prefix that no other test uses."""
        return f"azblob://127.0.0.1:{self.port}/{CONTAINER}/{secrets.token_hex(8)}?account={ACCOUNT}"

    def account(self, room: str = "acme") -> AzureAccount:
        """An account that trusts the stand-in's certificate."""

        async def no_secret(name: str) -> bytes | None:
            return None

        egress = EgressPolicy(("127.0.0.1",))
        return AzureAccount(
            None, Surroundings(Settings(), SystemClock(), egress, room, (), no_secret), trust=self.trust
        )

    def house(self, url: str) -> AzureBlobHouse:
        """The house under an address."""
        return AzureBlobHouse(azure_place(url), self.account(), Principal())


class Principal:
    """A credential whose tokens are signed by nobody; the stand-in does not look."""

    async def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        ends_at = int(time.time()) + 3600
        claims = {
            "aud": "https://storage.azure.com",
            "iss": "https://sts.windows.net/6babcaad-604b-40ac-a9d7-9fd97c0b779f/",
            "oid": "23657296-5cd5-45b0-a809-d972a7f4dfe1",
            "tid": "6babcaad-604b-40ac-a9d7-9fd97c0b779f",
            "iat": int(time.time()) - 60,
            "nbf": int(time.time()) - 60,
            "exp": ends_at,
        }
        return AccessToken(f"{_segment({'alg': 'RS256', 'typ': 'JWT'})}.{_segment(claims)}.c2lnbmF0dXJl", ends_at)

    async def close(self) -> None:
        """Nothing is held."""

    async def __aenter__(self) -> Principal:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held."""


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """The stand-in, started for the session, with an empty container."""
    script = npm_script("azurite", "azurite/dist/src/blob/main.js", omit="peer")
    folder = tmp_path_factory.mktemp("azurite")
    authority = trustme.CA()
    own = authority.issue_cert("127.0.0.1")
    own.private_key_pem.write_to_path(str(folder / "key.pem"))
    own.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    port = free_port()
    command = [
        "node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence",
        "--skipApiVersionCheck", "--disableTelemetry", "--silent", "--oauth", "basic",
        "--cert", str(folder / "cert.pem"), "--key", str(folder / "key.pem"),
    ]  # fmt: skip
    running = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with stopped_at_the_end(running):
        wait_for("azurite", running, port)
        yield _with_container(Azurite(port, authority))


def _with_container(azurite: Azurite) -> Azurite:
    async def make() -> None:
        account = azurite.account()
        address = f"https://127.0.0.1:{azurite.port}/{ACCOUNT}"
        async with BlobServiceClient(address, credential=Principal(), transport=account.transport) as service:
            await service.create_container(CONTAINER)
        await account.close()

    asyncio.run(make())
    return azurite


def _segment(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
