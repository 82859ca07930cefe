"""A file of 100 MiB up and down, sealed, beside a plain copy through the same storage and client.

Run: ``python -m benchmarks.blobs`` from ``tests/``. The S3 stand-in is a Python process on the same machine, so it and
the client take most of the time there; the ratio tells what sealing adds. Memory is what Python holds beyond the start,
at its highest, while the parts are made and dropped one by one; on S3, whose client needs parts of 5 MiB, beyond what the
plain copy holds.
"""

from __future__ import annotations

import gc
import os
import subprocess
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import Row, at_least, at_most, main, ratios, row
from nagaya.adapters import Surroundings
from nagaya.blobs.blob_store import Blobs
from nagaya.blobs.filesystem import open_house
from nagaya.kernel.clock import SystemClock
from nagaya.kernel.egress import EgressPolicy
from nagaya.keys.keyring import Keyring
from nagaya.records.sealed_blobs import CHUNK_BYTES, SealedBlobs
from nagaya.records.sealer import Sealer
from nagaya.settings import Settings
from nagaya.testing.keys import MemoryKeys, MemoryKeyVersions

MIB = 1024 * 1024
SIZE = 100 * MIB
PART = os.urandom(MIB)


async def parts() -> AsyncIterator[bytes]:
    for _ in range(SIZE // MIB):
        yield PART


async def up(blobs: Blobs | SealedBlobs) -> None:
    await blobs.put("file", parts())


async def down(blobs: Blobs | SealedBlobs) -> None:
    got = 0
    async for piece in blobs.read("file"):
        got += len(piece)
        del piece
    assert got >= SIZE


async def seconds(work: Callable[..., Coroutine[Any, Any, None]], blobs: Blobs | SealedBlobs) -> float:
    start = time.perf_counter()
    await work(blobs)
    return time.perf_counter() - start


async def highest(work: Callable[..., Coroutine[Any, Any, None]], blobs: Blobs | SealedBlobs) -> int:
    """The most that was held at one time beyond the start, in bytes."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        await work(blobs)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def one_storage(name: str, house: Any, rounds: int, *, client_holds: bool) -> list[Row]:
    """The rows of one storage. ``client_holds``: the vendor's client holds parts too, plain or sealed."""
    keys, versions = MemoryKeys(), MemoryKeyVersions()
    await versions.rotate(keys, "acme")
    await house.create("acme")
    await house.create("plain")
    ours = SealedBlobs(Blobs(await house.open("acme")), Sealer("acme", Keyring("acme", keys, versions, SystemClock())))
    theirs = Blobs(await house.open("plain"))
    found = []
    beyond = "the plain copy's" if client_holds else "–"
    for job, work in (("up", up), ("down", down)):
        sealed_s, plain_s = [], []
        await work(theirs)
        await work(ours)
        for _ in range(rounds):
            plain_s.append(await seconds(work, theirs))
            sealed_s.append(await seconds(work, ours))
        shares = ratios(plain_s, sealed_s)
        speed = SIZE / MIB / sorted(sealed_s)[rounds // 2]
        share = at_least(sorted(shares)[rounds // 2], 0.6)
        found.append(
            row(f"100 MiB {job}, sealed, {name}", "plain copy, same client", share, f"{speed:,.0f} MiB/s", shares)
        )
        plain, sealed = await highest(work, theirs), await highest(work, ours)
        chunks = at_most((sealed - plain * client_holds) / CHUNK_BYTES, 3.0, "{:.1f} chunks")
        absolute = f"{sealed / MIB:.1f} MiB; the plain copy {plain / MIB:.1f} MiB"
        found.append(row(f"100 MiB {job}, sealed, {name}: memory", beyond, chunks, absolute))
    await house.destroy("acme")
    await house.destroy("plain")
    return found


async def measure(folder: Path, quick: bool) -> list[Row]:
    """Throughput and memory on disk and, where its stand-in can be had, on S3."""
    rounds = 3 if quick else 7
    house = await open_house(f"file://{folder}/blobs", _surroundings())
    rows = await one_storage("disk", house, rounds, client_holds=False)
    await house.close()
    with ExitStack() as stack:
        from nagaya.blobs import s3
        from parts.blob_places import bare_s3

        url = _stand_in(stack)
        async with bare_s3(url) as client:
            await client.create_bucket(Bucket="figures")
        house = await s3.open_house(f"s3://figures?endpoint={url}", _surroundings())
        rows += await one_storage("S3 stand-in", house, rounds, client_holds=True)
        await house.close()
    return rows


def _stand_in(stack: ExitStack) -> str:
    from parts.environments import environment
    from parts.ports import free_port, stopped_at_the_end, wait_for

    port = free_port()
    settings = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "SFTP_ENABLED": "0", "IOT_MTLS_ENABLED": "0"}
    running = subprocess.Popen(
        [environment("ministack"), "-m", "ministack"],
        env=dict(os.environ) | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.enter_context(stopped_at_the_end(running))
    wait_for("ministack", running, port)
    return f"http://127.0.0.1:{port}"


def _surroundings() -> Surroundings:
    async def secret(name: str) -> bytes | None:
        return b'{"access_key_id": "test", "secret_access_key": "test"}' if name == "s3-connection" else None

    return Surroundings(Settings(), SystemClock(), EgressPolicy(["127.0.0.1"]), "_platform", (), secret)


if __name__ == "__main__":
    main(measure)
