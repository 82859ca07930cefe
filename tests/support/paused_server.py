"""A server that is there to be stopped in the middle of a job and let go again: ``python -m support.paused_server DATA
URL DEAD_AFTER_S``. It says what it began, and whether it could write once there is a file ``go``."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from nagaya.jobs import durable, liveness
from nagaya.records.sealed_store import Partition
from nagaya.settings import Settings
from nagaya.wiring import Nagaya

KIND = "pause"


def notes_of(job_id: str) -> Partition:
    """Where the work of such a job notes what it did."""
    return Partition("pause", job_id)


async def _serve(data: Path, url: str, dead_after_s: float) -> None:
    liveness.DEAD_AFTER_S, durable.RENEW_S = dead_after_s, 0.3
    # It takes over nobody's: on a busy machine the other one may seem to stand still too.
    liveness.RenewedRows.dead = lambda self, server: []  # type: ignore[method-assign]  # see the line above

    async def work(job) -> None:
        records = job.session.records
        await records.put(notes_of(job.id), b"first began", b"")
        print("began", flush=True)
        while not (data / "go").exists():
            await asyncio.sleep(0.02)
        said = "stopped"
        try:
            await records.put(notes_of(job.id), b"first ended", b"")
            said = "wrote"
        finally:
            print(said, flush=True)

    async with Nagaya.open(settings=Settings(data=str(data), registry=url)) as nagaya:
        nagaya.jobs.register(KIND, work)
        await nagaya.jobs.start()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        await nagaya.close(deadline_s=0.0)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])))
