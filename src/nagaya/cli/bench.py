"""``nagaya bench``: the project's own speed figures, from a source checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from nagaya.cli.place import Place


def bench(place: Place) -> None:
    """Measure speed against the yardsticks of the source checkout. Takes minutes; leave the machine alone meanwhile."""
    from nagaya.errors import InvalidRequest

    place.only_here("bench")
    root = Path(__file__).parents[3]
    figures = sorted((root / "tests" / "benchmarks").glob("*_figures.py"))
    if not figures:
        raise InvalidRequest(
            "The benchmarks are in the source checkout only; clone it and run `make bench`.",
            "ベンチマークはソースのチェックアウトにだけあります。クローンして `make bench` を実行してください。",
        )
    failed = []
    for script in figures:
        place.out.note(f"--- {script.stem}", f"--- {script.stem}")
        # Results of the single figures go to standard error: standard output holds the one document.
        done = subprocess.run([sys.executable, script], cwd=root, stdout=sys.stderr, check=False)  # noqa: S603 - our own files
        if done.returncode:
            failed.append(script.stem)
    place.out.fields({"ran": [script.stem for script in figures], "failed": failed})
    if failed:
        raise typer.Exit(1)
