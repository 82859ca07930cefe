"""A PostgreSQL connection that leaves the machine: encrypted, and to nobody else than the address names."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from nagaya.errors import StoreUnreachable
from nagaya.stores.postgres import open_house
from nagaya.stores.store import Store
from parts.postgres import APP, PASSWORD, Postgres
from support.postgres_house import surroundings

pytest_plugins = ["parts.postgres_server"]


class Front:
    """Speaks TLS as PostgreSQL does, in front of a server that was built without it."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self._postgres = postgres
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority = self._certify(folder)
        self.port = 0
        self.plain_bytes = b""
        self.offers_tls = True

    def _certify(self, folder: Path) -> str:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = made.public_bytes(Encoding.PEM)
        file = folder / "both.pem"
        file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._context.load_cert_chain(file)
        return pem.decode()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks = []
        server_writer = None
        try:
            self.plain_bytes += await reader.readexactly(8)
            writer.write(b"S" if self.offers_tls else b"N")
            await writer.drain()
            if not self.offers_tls:
                self.plain_bytes += await reader.read(1000)
                return
            await writer.start_tls(self._context)
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._postgres.port)
            tasks = [
                asyncio.create_task(self._pass(reader, server_writer)),
                asyncio.create_task(self._pass(server_reader, writer)),
            ]
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            for task in tasks:
                task.cancel()
            if server_writer is not None:
                server_writer.transport.abort()
            writer.transport.abort()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while piece := await source.read(65_536):
            target.write(piece)
            await target.drain()


@pytest.fixture
async def front(postgres: Postgres, tmp_path: Path) -> AsyncIterator[Front]:
    front = Front(postgres, tmp_path)
    server = await asyncio.start_server(front.accept, "127.0.0.1", 0)
    front.port = server.sockets[0].getsockname()[1]
    yield front
    server.close()
    await asyncio.sleep(0.05)


def secret(front: Front, **more: str) -> bytes:
    return json.dumps({"user": APP, "password": PASSWORD, "ca": front.authority} | more).encode()


async def test_the_name_in_the_address_is_what_the_certificate_must_hold(front: Front, database: str) -> None:
    around = surroundings(secret=secret(front))
    house = await open_house(f"postgresql://localhost:{front.port}/{database}?sslmode=verify-full", around)
    try:
        await house.create("acme")
        store = Store(await house.open("acme"))
        await store.put("p", b"k", b"x")
        assert await store.get("p", b"k") is not None
    finally:
        await house.close()
    with pytest.raises(StoreUnreachable):
        await open_house(f"postgresql://127.0.0.1:{front.port}/{database}?sslmode=verify-full", around)


async def test_a_certificate_that_nobody_vouches_for_is_refused_unless_that_is_asked_for(
    front: Front, database: str
) -> None:
    around = surroundings(secret=json.dumps({"user": APP, "password": PASSWORD}).encode())
    with pytest.raises(StoreUnreachable):
        await open_house(f"postgresql://localhost:{front.port}/{database}?sslmode=verify-full", around)
    house = await open_house(f"postgresql://127.0.0.1:{front.port}/{database}?sslmode=require", around)
    await house.close()


async def test_a_server_that_offers_no_encryption_is_told_nothing(front: Front, database: str) -> None:
    front.offers_tls = False
    for mode in ("verify-full", "require"):
        with pytest.raises(StoreUnreachable):
            await open_house(
                f"postgresql://localhost:{front.port}/{database}?sslmode={mode}", surroundings(secret=secret(front))
            )
    assert APP.encode() not in front.plain_bytes
    assert PASSWORD.encode() not in front.plain_bytes
