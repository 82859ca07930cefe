"""Logging: structlog lines with a stable ``action=``, as JSON or for people, on standard error."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Final

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class _StandardError:
    """Writes whole lines to standard error as it is at that moment. A log line must never fail the work it tells of,
    so where nobody takes it any more it is let go."""

    def msg(self, message: str) -> None:
        with _one_at_a_time, contextlib.suppress(OSError, ValueError):
            sys.stderr.write(message + "\n")
            sys.stderr.flush()

    log = debug = info = warn = warning = error = err = critical = fatal = exception = failure = msg


_one_at_a_time: Final = threading.Lock()
_standard_error: Final = _StandardError()


def _to_standard_error(*_: object) -> _StandardError:
    return _standard_error


def set_up_logging(level: str = "info", form: str = "json") -> None:
    """Send log lines of ``level`` and above to standard error, as ``json`` lines or ``text``. May be repeated."""
    number = LEVELS.get(level, 20)
    render: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_to_standard_error,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=max(number, logging.WARNING), format="%(levelname)s %(name)s %(message)s")
