"""The server as a child process: configured as `nagaya serve` does, on a free port of the loopback, which it prints."""

from __future__ import annotations

import ctypes
import os
import socket

import faults
import uvicorn

from nagaya.cli.serving import configured
from nagaya.kernel.telemetry import set_up_logging
from nagaya.server.app import Application
from nagaya.settings import load_settings


def main() -> None:
    """Serve until SIGTERM; the settings are in the environment (``NAGAYA_…``)."""
    settings = load_settings()
    set_up_logging("info", "json")
    faults.obey(os.environ)
    limit = os.environ.get("TEST_FILE_SIZE_LIMIT")
    if limit is not None:
        import resource
        import signal

        # A write beyond the limit then fails with EFBIG instead of killing the process.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    if os.environ.get("TEST_WITHOUT_OVERRIDE"):
        obey_permissions()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"port {listener.getsockname()[1]}", flush=True)
    uvicorn.Server(configured(settings, Application(settings))).run(sockets=[listener])


def obey_permissions() -> None:
    """Give up the superuser's right to write where permissions forbid it, so that read-only is read-only."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capabilities version 3, this thread
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; low words, then high words
    if libc.capget(header, data) != 0:
        return
    for at in (0, 1):
        data[at] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    libc.capset(header, data)


if __name__ == "__main__":
    main()
