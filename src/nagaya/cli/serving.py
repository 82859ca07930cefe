"""The server in processes of the operating system: one in this process, or several workers on the same folder."""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
import socket
from types import FrameType
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess

from nagaya.cli.logs import logging_config
from nagaya.errors import CannotListen, StoreReadOnly
from nagaya.kernel.telemetry import set_up_logging
from nagaya.server.protocol import PatientHttp
from nagaya.settings import Settings, export

if TYPE_CHECKING:
    from nagaya.server.app import Application

_log = structlog.get_logger(__name__)

KEEP_ALIVE_S: Final = 30
BACKLOG: Final = 2048
WORKER_START_S: Final = 30.0
WORKER_HANGS_S: Final = 30
"""A worker that does not answer its supervisor for this long is replaced. A busy one must not be."""


def run_server(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then let streams end for ``drain_s`` seconds. 0, or 1 where a worker failed.

    Raises before anything listens where it cannot start: ``CannotListen``, ``RootKeyRefused``, ``RegistryNewer``,
    ``StoreReadOnly`` and the like.
    """
    set_up_logging(settings.log_level, settings.log_format)
    listener = listen(settings.host, settings.port)
    # Whatever port the system chose is the one that is meant from here on.
    settings = msgspec.structs.replace(settings, port=listener.getsockname()[1])
    # The web servers raise the signal that ended them once more when they are done; done is done.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore_again)
    with listener:
        if settings.workers > 1:
            return _run_workers(settings, listener)
        from nagaya.server.app import Application

        application = Application(settings)
        server = Announcing(configured(settings, application), settings)
        server.run(sockets=[listener])
        if application.problem is not None:
            raise application.problem
        return 0 if server.started else 1


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; nothing is accepted yet. Raises ``CannotListen``."""
    place = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # Two servers could both bind one port and only the second would fail, late: claim it now.
        listener.listen(BACKLOG)
    except (OSError, UnicodeError) as failed:
        if listener is not None:
            listener.close()
        detail = getattr(failed, "strerror", None) or "not a host name"
        raise CannotListen(place=place, detail=detail) from None
    listener.set_inheritable(True)
    return listener


def check_startable(settings: Settings) -> None:
    """Open the platform and close it again: what would stop a start is raised here, once, in one line."""
    from nagaya.wiring import Nagaya

    async def opened() -> None:
        async with Nagaya.open(settings=settings) as nagaya:
            nagaya.queues.check()

    asyncio.run(opened())


def configured(settings: Settings, application: Application | str) -> uvicorn.Config:
    """The web server's configuration. A string names the application's factory, for worker processes."""
    return uvicorn.Config(
        application,
        factory=isinstance(application, str),
        interface="asgi3",
        http=PatientHttp,
        ws="none",
        loop="auto",
        lifespan="on",
        workers=settings.workers,
        log_config=logging_config(settings.log_level, settings.log_format),
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        timeout_worker_healthcheck=WORKER_HANGS_S,
    )


class Announcing(uvicorn.Server):
    """Says when it is ready, in our own log. ``settled`` is set once it serves or has failed to start."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings
        self.settled = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # What keeps the application from starting is raised by our caller in one line, not logged in three.
        logger = logging.getLogger("uvicorn.error")
        logger.disabled = True
        try:
            await super().startup(sockets)
        except SystemExit:
            # It may not be alone in its process: whoever runs it ends the process, or does not.
            self.should_exit = True
        finally:
            logger.disabled = False
            self.settled.set()
        if self.started:
            _announce(self._settings)


class _Workers(Multiprocess):
    """The supervisor. Says when every worker serves, and remembers a worker that could not start."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, settings: Settings) -> None:
        super().__init__(config, sockets=[listener])
        self._settings = settings
        self.failed = False

    def init_processes(self) -> None:
        super().init_processes()
        ready = [process.wait_until_ready(WORKER_START_S, self.should_exit) for process in self.processes]
        if all(ready):
            _announce(self._settings)

    def keep_subprocess_alive(self) -> None:
        before = self.should_exit.is_set()
        super().keep_subprocess_alive()
        self.failed = self.failed or (self.should_exit.is_set() and not before)


def _run_workers(settings: Settings, listener: socket.socket) -> int:
    folder = settings.folder / "metrics"
    settings = msgspec.structs.replace(settings, metrics_folder=str(folder))
    check_startable(settings)
    try:
        # Counts of processes that are gone would be added to the new ones.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
    except OSError:
        raise StoreReadOnly from None
    export(settings)
    workers = _Workers(configured(settings, "nagaya.server.app:from_environment"), listener, settings)
    workers.run()
    _log.info("stopped", action="server.stopped")
    return 1 if workers.failed else 0


def _announce(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _log.info(
        f"listening on http://{host}:{settings.port}",
        action="server.listening",
        url=f"http://{host}:{settings.port}",
        workers=settings.workers,
    )


def ignore_again(number: int, frame: FrameType | None) -> None:
    """The signal has done its work already."""
