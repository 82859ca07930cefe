"""The web server's own log lines, and those of any library, in the same shape as ours."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any


class StructuredLines(logging.Formatter):
    """A standard-library record as one JSON (or text) line with ``action="library.log"``."""

    def __init__(self, form: str = "json") -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the record holds."""
        line: dict[str, Any] = {
            "event": " ".join(record.getMessage().split()),
            "action": "library.log",
            "logger": record.name,
            "level": record.levelname.lower(),
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if self._form == "json":
            return json.dumps(line, ensure_ascii=False)
        return f"{line['timestamp']} [{line['level']}] {line['event']} action=library.log logger={record.name}"


def logging_config(level: str, form: str) -> dict[str, Any]:
    """A ``logging.config`` dictionary: everything to standard error, structured; libraries from warnings on."""
    quiet = "DEBUG" if level == "debug" else "ERROR" if level == "error" else "WARNING"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": "nagaya.cli.logs.StructuredLines", "form": form}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}},
        "root": {"handlers": ["stderr"], "level": quiet},
        "loggers": {
            # It warns of every request that is no HTTP, and strangers may send as many of those as they like.
            "uvicorn": {"level": "ERROR", "propagate": True, "handlers": []},
            "uvicorn.error": {"level": "ERROR", "propagate": True, "handlers": []},
            "asyncio": {"level": "WARNING"},
            "httpcore": {"level": "WARNING"},
            "aiosqlite": {"level": "WARNING"},
        },
    }
