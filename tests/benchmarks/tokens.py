"""The warm token check beside one bare RS256 verification. Run: ``python -m benchmarks.tokens``."""

from __future__ import annotations

import sys
from pathlib import Path

import structlog

from benchmarks.figures import Row, at_most, main, ratios, row
from benchmarks.token_figures import figures


async def measure(folder: Path, quick: bool) -> list[Row]:
    """The token row: its time, and its 99th percentile."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    rounds: dict[str, list[float]] = {}
    found = await figures(rounds)
    shares = ratios(rounds["warm_authenticate"], rounds["cryptography_rs256"])
    absolute = f"{found['warm_authenticate_us']:.1f} µs; bare {found['cryptography_rs256_us']:.1f} µs"
    bare = "`cryptography` RS256 verify alone"
    return [
        row("token check, warm", bare, at_most(found["warm_authenticate_ratio"], 0.3), absolute, shares),
        row("token check, warm: p99", "–", at_most(found["warm_p99_us"] / 1e3, 2.0, "{:.3g} ms"), absolute),
    ]


if __name__ == "__main__":
    main(measure)
