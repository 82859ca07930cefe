"""Ten thousand tenants in one folder: what one costs to make, to keep, and to open when it was closed.

Every tenant gets a conversation of fifty messages. Then tenants are visited at random with far fewer files open than
there are tenants. With ``--quick``, a thousand tenants. Run: ``python -m benchmarks.tenants [--quick]``.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from pathlib import Path

from benchmarks.figures import Row, at_most, main, row, us
from benchmarks.servers import rss_kib
from nagaya import Message, Nagaya
from nagaya.settings import Settings
from nagaya.tenancy.principal import Entrance

OPEN = 512
HOT = 400
SLICES = 8
"""Of the visits, each with a ratio of its own: where they disagree, the machine was disturbed."""
TEXT = "m" * 1024


def _disk_bytes(folder: Path) -> int:
    """Bytes that a folder takes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*"))


async def _seed(nagaya: Nagaya, entrance: Entrance) -> str:
    async with nagaya.session(entrance) as tenant:
        chat = await tenant.conversations.create()
        for size in (20, 20, 10):
            await tenant.conversations.append(chat.id, *(Message.user(TEXT) for _ in range(size)))
    return chat.id


async def _read(nagaya: Nagaya, entrance: Entrance, chat: str) -> float:
    """Seconds to open a session and read the last fifty."""
    began = time.perf_counter()
    async with nagaya.session(entrance) as tenant:
        items = await tenant.conversations.items(chat, limit=50)
    took = time.perf_counter() - began
    assert len(items) == 50
    return took


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of many tenants."""
    count = 1_000 if quick else 10_000
    open_stores = 64 if quick else OPEN
    pick = random.Random(count)
    async with Nagaya.open(settings=Settings(data=str(folder / "data"), open_stores=open_stores)) as nagaya:
        names = [f"bench-{pick.randrange(16**6):06x}-{number:05}" for number in range(count)]
        created = []
        for name in names:
            began = time.perf_counter()
            await nagaya.tenants.create(name, name="Bench")
            created.append(time.perf_counter() - began)
        sizes = [_disk_bytes(folder / "data" / "tenants" / name) for name in pick.sample(names, 50)]
        entrances = {name: await nagaya.enter(await nagaya.tenants.mint(name, "mio")) for name in names}
        chats: dict[str, str] = {}
        for start in range(0, count, 8):
            some = names[start : start + 8]
            chats.update(
                zip(some, await asyncio.gather(*(_seed(nagaya, entrances[name]) for name in some)), strict=True)
            )
        hot_name = names[0]
        cold: list[float] = []
        hot: list[float] = []
        slices: list[tuple[list[float], list[float]]] = [([], []) for _ in range(SLICES)]
        resident = []
        visits = count * 2 if quick else count
        for number in range(visits):
            name = names[pick.randrange(count)]
            is_open = nagaya.rooms.parts(name) is not None
            took = await _read(nagaya, entrances[name], chats[name])
            now_cold, now_hot = slices[number * SLICES // visits]
            if not is_open:
                now_cold.append(took)
            if number % (visits // 40) == 0:
                # The hot reads are taken among the cold ones, so that a busy machine slows both alike.
                await _read(nagaya, entrances[hot_name], chats[hot_name])
                now_hot += [await _read(nagaya, entrances[hot_name], chats[hot_name]) for _ in range(HOT // 40)]
                resident.append(rss_kib(os.getpid()))
    half = len(resident) // 2
    grown = (statistics.median(resident[half:]) - statistics.median(resident[:half])) / 1024
    for one_cold, one_hot in slices:
        cold += one_cold
        hot += one_hot
    rounds = [statistics.median(one_cold) / statistics.median(one_hot) for one_cold, one_hot in slices]
    cold_s, hot_s = statistics.median(cold), statistics.median(hot)
    many = f"{count:,} tenants in one folder"
    return [
        row(
            f"{many}, at random: cold open and read of 50",
            "hot read p50 of one open tenant",
            at_most(cold_s / hot_s, 12.0, "{:.1f}×"),
            f"{us(cold_s)} ({len(cold):,} of {visits:,} visits, {open_stores} files open); hot {us(hot_s)}",
            rounds,
        ),
        row(f"{many}: creation p50", "–", at_most(statistics.median(created) * 1e3, 20, "{:.1f} ms"),
            f"p99 {us(statistics.quantiles(created, n=100)[98])}; last tenth {us(statistics.median(created[-count // 10:]))}"),
        row(f"{many}: an empty tenant on disk", "–", at_most(statistics.median(sizes) / 1024, 40, "{:.0f} KiB"),
            "median of 50, whole blocks"),
        row(f"{many}: memory from the first half of the visits to the second", "–",
            at_most(grown, 8, "{:+.1f} MiB"), f"{resident[0] / 1024:.0f} MiB at first, {resident[-1] / 1024:.0f} MiB at last"),
    ]  # fmt: skip


if __name__ == "__main__":
    main(measure)
