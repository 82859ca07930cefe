"""A process that runs jobs over a folder: ``python -m support.jobs_server FOLDER [URL]``. It notes in ``did`` what it
began and ended, and is there to be killed. Once there is a file ``enough``, its jobs end."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from nagaya.jobs import durable
from support.jobs import Company


async def _serve(folder: Path, url: str | None) -> None:
    durable.RENEW_S = float(os.environ.get("RENEW_S", durable.RENEW_S))
    company = Company("acme", "globex")
    jobs = company.jobs(folder, url=url)
    did = os.open(folder / "did", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def slow(job) -> None:
        os.write(did, f"{os.getpid()} began {job.id}\n".encode())
        ends_s = time.monotonic() + job.arguments["ms"] / 1000
        while time.monotonic() < ends_s and not (folder / "enough").exists():
            await asyncio.sleep(0.02)
        os.write(did, f"{os.getpid()} ended {job.id}\n".encode())

    jobs.register("slow", slow)
    await jobs.start()
    await jobs._opened()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await jobs.close(deadline_s=float(os.environ.get("DRAIN_S", "5")))


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None))
