"""``nagaya bench``: the project's own speed figures, from a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from nagaya.cli.place import Place


def bench(
    place: Place,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: for a look, not for the record")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="ROW", help="This part alone")] = None,
    write: Annotated[bool, typer.Option("--write", help="Write docs/reference/performance.md")] = False,
) -> None:
    """Measure speed against the yardsticks of the source checkout. Takes minutes; leave the machine alone meanwhile.

    Exit code 1 where a target is missed.
    """
    from nagaya.errors import InvalidRequest

    place.only_here("bench")
    tests = Path(__file__).parents[3] / "tests"
    if not (tests / "benchmarks" / "run.py").is_file():
        raise InvalidRequest(
            "The benchmarks are in the source checkout only; clone it and run `make bench`.",
            "ベンチマークはソースのチェックアウトにだけあります。クローンして `make bench` を実行してください。",
        )
    command = [sys.executable, "-m", "benchmarks.run"]
    command += ["--quick"] * quick + ["--write"] * write + [f"--only={row}" for row in only or ()]
    # Under --json the rows are messages: standard output holds the one document.
    rows_go_to = sys.stderr if place.out.as_json else None
    done = subprocess.run(command, cwd=tests, stdout=rows_go_to, check=False)  # noqa: S603 - a file of the checkout
    if place.out.as_json:
        place.out.document({"all_targets_met": done.returncode == 0})
    if done.returncode:
        raise typer.Exit(2 if done.returncode == 2 else 1)
