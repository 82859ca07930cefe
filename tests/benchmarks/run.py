"""Every figure that this project promises, each beside its yardstick in the same run.

``python -m benchmarks.run [--quick] [--only ROW] [--write]`` from ``tests/``. ``--write`` puts the table into
``docs/reference/performance.md``; a run of some rows alone replaces those rows only. Exits with 1 where a target is
missed or a row is unsteady. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import apsw

from benchmarks.figures import Row, from_json, not_measured, shown

HERE = Path(__file__).parents[1]
PAGE = HERE.parent / "docs" / "reference" / "performance.md"
KEPT = PAGE.with_suffix(".json")
"""The rows of the page by the module that measured them, for a run of some alone to keep the others."""
ROWS = (
    "library", "http", "tokens", "others", "tenants", "streams", "start",
    "postgres", "aws", "azure", "accounts", "blobs", "hanging", "revocation", "jobs", "search", "messages", "memories", "integrations",
    "context",
)  # fmt: skip
"""The modules that measure, in the order of the table."""

LIMIT_S = 900.0
"""How long one of them may take; then it is ended, and the next one begins."""

_INTRODUCTION = """# Performance

What Nagaya costs, each figure beside a yardstick measured in the same run, in turns. The table is written by
`make bench`; rows that miss their target say so, and rows whose rounds disagree are called unsteady, not met. Only the
ratios mean much: the absolute medians belong to the machine below, and a disk that acknowledges a sync sooner or later
moves both sides.

"""

_EXPLANATION = """
How the yardsticks are set up:

- Raw SQLite is `apsw` with a write-ahead log, `synchronous=FULL`, a rowid table and a unique index on (conversation,
  sequence), one statement per append. It neither encrypts, nor checks who asks, nor keeps more than the row.
- A read of 50 is taken from a file with many conversations written in turns, three times as large as the page cache (8 MB
  on both sides; SQLite's own default is 2 MB), by conversations at random. Where the whole file is in that cache, raw
  SQLite needs less than half the time: that ratio is shown too, without a target.
- FastAPI is one uvicorn worker (uvloop, httptools, no access log) that parses the same body into a typed model and
  writes it again, or returns a ready list of the same fifty items in the way that serialises quickest
  (`-> Any`; without any annotation FastAPI takes eight times as long).
- On a machine with two cores the server has one and the load generator the other.
- Open streams are `POST /v1/responses` with `stream`, of twenty tenants whose model is a server that says a word a second
  to each, spread evenly over the second. Model and readers are one process on the load generator's core; it parses
  nothing and takes a twelfth of that core. The appends beside them are another tenant's, 400 a second on eight
  connections whatever they take, timed from when they were due. They go in short turns to a server that streams
  nothing, while the model speaks to as many readers without a server and the streaming server is stopped, and to the
  streaming server while it streams. Six turns are a round of 3,120 appends on each side; the figure is the median of
  the ratios of seven rounds. Memory is the growth of the streaming server's resident size from when each tenant had one
  stream open to when all are open and had a minute of words, less the growth of the other server by the same appends.
- OpenAI Agents and LangGraph are set up as their documentation shows, encrypted, on SQLite files beside ours.
- AWS, Azure and S3 are local stand-ins that answer over HTTP, PostgreSQL and Valkey are themselves; all run on the same
  machine, so no figure holds a network's time.
- A search's yardstick is numpy alone: the cosines of all chunks in 32-bit floats, and the ten largest. Its target is a
  time,
  so it holds only on a machine that has nothing else to do. "Cold" begins with sealed segments on the disk and the key
  in memory. The texts are sentences of `tests/quality` put together anew, the vectors random: only quality needs real ones.
- Search quality is the mean over the judged queries of `tests/quality`; the fusion was tuned on half of them.
- A search of messages has their words noted beforehand, as searches have it done in the background; its yardstick reads
  every message. Half of the queries are Japanese. "Cold" begins with a room that was just opened, nothing of it in memory.
- Memories are added and searched by mem0's own client over HTTP, its time included; the tenant has a model that counts
  how often it is asked.
- The context of a long conversation is put together from its own records, opened anew or compared with what was opened
  lately, as a server does it; the model is not asked.
- Nothing here was tested against a loss of power.
"""


def measured(module: str, *, quick: bool) -> list[Row]:
    """One module's rows, measured in a process of its own. What fails becomes a row that says so."""
    command = [sys.executable, "-m", f"benchmarks.{module}", "--json", *(["--quick"] if quick else [])]
    # A session of its own, so that the servers which it started can be ended with it.
    running = subprocess.Popen(command, cwd=HERE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said, _ = running.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return [not_measured(module, f"it took longer than {LIMIT_S:.0f} s")]
    finally:
        _end(running)
    if running.returncode:
        return [not_measured(module, "the measurement failed; see its output")]
    return from_json(said.strip().splitlines()[-1])  # whatever a library prints comes before


def _end(running: subprocess.Popen[str]) -> None:
    """End the process and whatever it left behind."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(running.pid, number)
            running.wait(5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def machine() -> str:
    """What the figures were taken on, without anything that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB of memory, {platform.system()} ({platform.machine()}), "
        f"Python {platform.python_version()}, SQLite {apsw.sqlite_lib_version()}"
    )


def page(results: dict[str, list[Row]], command: str, *, older: bool = False) -> str:
    """The page. ``older``: some rows were kept from a run before, and the page says so."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    kept = " The rows of other parts were kept from an earlier run." if older else ""
    lines = [
        _INTRODUCTION + f"Taken {today} with `{command}` on {machine()}.{kept}\n",
        "| job | yardstick | measured | target | met | medians |",
        "|---|---|---|---|---|---|",
    ]
    for module in ROWS:
        for each in results.get(module, ()):
            met = {True: "yes", False: "**no**", None: "–" if each.target == "–" else "**unsteady**"}[each.met]
            cells = (each.job, each.yardstick, each.measured, each.target, met, each.absolute)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n" + _EXPLANATION


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and tenants: for a look, not for the record")
    parser.add_argument("--only", choices=ROWS, action="append", help="measure this alone; may be given several times")
    parser.add_argument("--write", action="store_true", help="write docs/reference/performance.md")
    options = parser.parse_args()
    results: dict[str, list[Row]] = {}
    began_s = time.monotonic()
    for module in options.only or ROWS:
        since_s = time.monotonic()
        results[module] = measured(module, quick=options.quick)
        for each in results[module]:
            print(shown(each), flush=True)
        print(f"({module}: {time.monotonic() - since_s:.0f} s)", file=sys.stderr, flush=True)
    print(f"({(time.monotonic() - began_s) / 60:.1f} minutes in all)", file=sys.stderr, flush=True)
    if options.write:
        kept = json.loads(KEPT.read_text()) if options.only and KEPT.exists() else {}
        whole = {module: from_json(json.dumps(rows)) for module, rows in kept.items()} | results
        rows = {module: [vars(each) for each in whole[module]] for module in ROWS if module in whole}
        KEPT.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(page(whole, command(options), older=whole.keys() > results.keys()), encoding="utf-8")
    return 0 if all(each.met or each.target == "–" for rows in results.values() for each in rows) else 1


def command(options: argparse.Namespace) -> str:
    """What was run, as one would type it."""
    rows = "".join(f" --only {module}" for module in options.only or ())
    if not (options.quick or rows):
        return "make bench"
    return f"nagaya bench{' --quick' * options.quick}{rows} --write"


if __name__ == "__main__":
    sys.exit(main())
