"""A look at the jobs database in the data folder without opening what runs jobs."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

FILE: Final = "jobs.db"

_UNFINISHED: Final = "SELECT 1 FROM workflow_status WHERE status IN ('ENQUEUED', 'PENDING', 'DELAYED') LIMIT 1"


def version(path: Path) -> tuple[int, int, int] | None:
    """Changes whenever the file does; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def has_work(path: Path) -> bool:
    """Whether a job waits or was left in the middle. Where that cannot be told, there may be one."""
    if not path.exists():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=5)) as connection:
            return connection.execute(_UNFINISHED).fetchone() is not None
    except sqlite3.Error:
        return True
