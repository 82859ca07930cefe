"""Background work: how fast, and how fair to small tenants. Run: ``python -m benchmarks.jobs [--quick]``.

A thousand jobs of ten tenants, each a few milliseconds in its tenant's session, wait when the server starts. Once every
tenant has a hundred; once the first has 910, all asked for before the others' ten each.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path

from benchmarks.figures import Row, at_least, at_most, main, ratio, ratios, row, us
from nagaya import Nagaya
from nagaya.kernel.telemetry import set_up_logging
from nagaya.tenancy.tenant import Tenant
from support.jobs import plant

TENANTS = 10
JOBS = 1_000
SMALL = 10
WORK_S = 0.005


async def _round(folder: Path, *, equal: bool) -> tuple[float, float]:
    """Jobs per second, and the mean wait of the small tenants' first ten jobs in seconds."""
    began: dict[str, list[float]] = {}
    ended = asyncio.Event()
    left = JOBS

    async def work(job) -> None:
        nonlocal left
        began.setdefault(job.tenant.id, []).append(time.perf_counter())
        await asyncio.sleep(WORK_S)
        left -= 1
        if not left:
            ended.set()

    async with Nagaya.open(folder) as nagaya:
        tenants = [await nagaya.tenants.create(f"company-{number}", name="Bench") for number in range(TENANTS)]
        nagaya.jobs.register("bench.work", work)
        await plant(nagaya.jobs, folder, _order(tenants, equal=equal), "bench.work")
        started_s = time.perf_counter()
        await nagaya.jobs.start()
        await asyncio.wait_for(ended.wait(), 300)
        took_s = time.perf_counter() - started_s
    small = [moment - started_s for tenant in tenants[1:] for moment in began[tenant.id][:SMALL]]
    return JOBS / took_s, statistics.fmean(small)


def _order(tenants: list[Tenant], *, equal: bool) -> list[Tenant]:
    if equal:
        return tenants * (JOBS // TENANTS)
    return [tenants[0]] * (JOBS - SMALL * (TENANTS - 1)) + tenants[1:] * SMALL


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The rows of background work."""
    set_up_logging("error")
    rates, waits, even = [], [], []
    for number in range(1 if quick else 5):
        rate, wait_s = await _round(folder / f"equal-{number}", equal=True)
        rates.append(rate)
        even.append(wait_s)
        rate, wait_s = await _round(folder / f"unequal-{number}", equal=False)
        waits.append(wait_s)
        rates.append(rate)
    return [
        row(
            "background work: a small tenant's first ten jobs wait, beside one with 910",
            "the same in an equal mix",
            at_most(ratio(waits, even), 1.2),
            f"{us(statistics.median(waits))} / {us(statistics.median(even))}",
            ratios(waits, even),
        ),
        row(
            "background work: jobs per second of one process, embedded",
            "–",
            at_least(statistics.median(rates), 30, "{:.0f}"),
            f"of {len(rates)} times {JOBS} jobs",
        ),
    ]


if __name__ == "__main__":
    main(measure)
