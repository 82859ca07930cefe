"""How long a start takes and what an idle server holds. Run: ``python -m benchmarks.start [--quick]``."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Row, at_most, main, row
from benchmarks.servers import HERE, free_port, nagaya_command, rss_kib, wait_for


def _help_s() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "nagaya", "--help"], cwd=HERE, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _ready(folder: Path) -> tuple[float, int]:
    """Seconds until ``/readyz`` says 200, and KiB resident a second later."""
    port = free_port()
    began = time.perf_counter()
    process = subprocess.Popen(nagaya_command(folder, port), cwd=HERE, env={**os.environ, "NAGAYA_LOG_LEVEL": "error"})
    try:
        wait_for(port, "/readyz", process)
        ready_s = time.perf_counter() - began
        time.sleep(1)
        return ready_s, rss_kib(process.pid)
    finally:
        process.terminate()
        process.wait(15)


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The start rows."""
    rounds = 3 if quick else 7
    helped = [_help_s() for _ in range(rounds + 1)][1:]  # the first one compiles and fills the disk's cache
    served = [await asyncio.to_thread(_ready, folder / "data") for _ in range(rounds)]
    idle_mib = statistics.median(kib for _, kib in served) / 1024
    return [
        row("start: `nagaya --help`", "–", at_most(statistics.median(helped), 0.4, "{:.2f} s"), f"of {rounds} starts"),
        row(
            "start: `nagaya serve` ready",
            "–",
            at_most(statistics.median(s for s, _ in served), 2.0, "{:.2f} s"),
            f"of {rounds} starts",
        ),
        row("idle server, no embeddings loaded", "–", at_most(idle_mib, 120, "{:.0f} MiB"), "resident"),
    ]


if __name__ == "__main__":
    main(measure)
