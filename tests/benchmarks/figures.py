"""What a measurement says, and the rounds it is taken in.

The job and its yardstick take turns (A B A B …) in one run, so that a busy machine slows both alike; a figure is the
median over the rounds, and only ratios mean anything.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import uvloop

UNSTEADY = 1.5
"""Quartiles of the rounds' ratios further apart than this show that the machine was disturbed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. ``met`` is None for a line that has no target."""

    job: str
    yardstick: str
    measured: str
    target: str
    absolute: str
    met: bool | None = None


def at_most(value: float, limit: float, text: str = "{:.2f}×") -> tuple[str, str, bool]:
    """Measured, target, and whether it is met, for a figure that must not be larger."""
    return text.format(value), "≤ " + text.format(limit), value <= limit


def at_least(value: float, limit: float, text: str = "{:.2f}×") -> tuple[str, str, bool]:
    """As :func:`at_most`, for a figure that must not be smaller."""
    return text.format(value), "≥ " + text.format(limit), value >= limit


def row(job: str, yardstick: str, judged: tuple[str, str, bool], absolute: str, rounds: Sequence[float] = ()) -> Row:
    """A row with a target. Where the ``rounds``' ratios disagree, it is neither met nor missed: on a machine that does
    something else meanwhile a yardstick can become thirty times slower than it is, and the job beside it look good."""
    measured, target, met = judged
    if len(rounds) > 2:
        low, _, high = statistics.quantiles(rounds, n=4)
        if high > UNSTEADY * low:
            return Row(job, yardstick, f"{measured} (unsteady: {low:.2f}–{high:.2f})", target, absolute, None)
    return Row(job, yardstick, measured, target, absolute, met)


def us(seconds: float) -> str:
    """Seconds as µs, ms or s, whichever reads best."""
    if seconds < 0.0095:
        return f"{seconds * 1e6:,.0f} µs"
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours ÷ theirs in each round, whose two were measured one right after the other."""
    return [mine / yours for mine, yours in zip(ours, theirs, strict=True)]


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of :func:`ratios`."""
    return statistics.median(ratios(ours, theirs))


def main(measure: Callable[[Path, bool], Awaitable[list[Row]]]) -> None:
    """Measure in a folder of its own and print the rows, as JSON with ``--json``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer rounds: for a look, not for the record")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nagaya-bench-") as folder:
        try:
            rows = uvloop.run(measure(Path(folder), options.quick))
        except pytest.skip.Exception as absent:
            rows = [not_measured(Path(sys.argv[0]).stem, str(absent))]
    if options.json:
        json.dump([dataclasses.asdict(each) for each in rows], sys.stdout, ensure_ascii=False)
        return
    for each in rows:
        print(shown(each))


def not_measured(job: str, why: str) -> Row:
    """The row of what could not be measured: it counts as missed."""
    return Row(job, "–", "not measured", "every row", why, met=False)


def shown(each: Row) -> str:
    """A row as one line for people."""
    verdict = {True: "met   ", False: "MISSED", None: "      "}[each.met]
    return f"{verdict} {each.job}: {each.measured} (target {each.target}) beside {each.yardstick}; {each.absolute}"


def from_json(text: str) -> list[Row]:
    rows: list[dict[str, Any]] = json.loads(text)
    return [Row(**each) for each in rows]
