"""``nagaya demo``: two companies, a conversation in each, and what happens when one reaches for the other's."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from socket import socket
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from nagaya.cli.place import Place
from nagaya.errors import CannotListen

if TYPE_CHECKING:
    from nagaya.cli.demo_scenario import Outcome
    from nagaya.settings import Settings
    from nagaya.wiring import Nagaya

_PORTS_TRIED = 100


async def demo(
    place: Place,
    once: Annotated[bool, typer.Option("--once", help="End after the scenario")] = False,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="[default: 8700]")] = None,
) -> None:
    """Two tenants, a real conversation in each, an isolation check; then the URLs, and it stays up.

    Exit code 1 where anything of one tenant could be reached from the other. Re-running is harmless.
    """
    from nagaya.cli.demo_scenario import Scenario
    from nagaya.kernel.telemetry import set_up_logging

    place.only_here("demo")
    settings = place.settings(port=port, workers=1, log_level="error", log_format="text")
    # The refusals that are shown are also warned of; here they are the story, not trouble.
    set_up_logging(settings.log_level, settings.log_format)
    listener, settings = _listen_near(place, settings)
    with listener:
        async with _serving(settings, listener) as (nagaya, ended):
            host = "127.0.0.1" if settings.host in ("", "0.0.0.0") else settings.host  # noqa: S104 - compared, not bound
            url = f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"
            scenario = asyncio.ensure_future(Scenario(nagaya, place.out, url).play())
            either: set[asyncio.Future[Any]] = {scenario, ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not scenario.done():
                # Ctrl-C in the middle: the server is gone, and with it what the scenario talks to.
                scenario.cancel()
                await asyncio.gather(scenario, return_exceptions=True)
                raise typer.Exit(1)
            outcome: Outcome = scenario.result()
            if not once and outcome.isolated:
                place.out.note("Ctrl-C stops the server.", "Ctrl-C でサーバーを止めます。")
                await asyncio.wait({ended})
    if not outcome.isolated:
        raise typer.Exit(1)


def _listen_near(place: Place, settings: Settings) -> tuple[socket, Settings]:
    """A listener on the wanted port, or on the next free one."""
    from nagaya.cli.serving import listen

    for port in range(settings.port, min(settings.port + _PORTS_TRIED, 65536)):
        try:
            listener = listen(settings.host, port)
        except CannotListen:
            if port + 1 == min(settings.port + _PORTS_TRIED, 65536):
                raise
            continue
        found = listener.getsockname()[1]
        if found != settings.port and settings.port:
            place.out.note(
                f"Port {settings.port} is taken; using {found}.",
                f"ポート {settings.port} は使用中のため {found} を使います。",
            )
        return listener, msgspec.structs.replace(settings, port=found)
    raise AssertionError("a range of ports is never empty")


@asynccontextmanager
async def _serving(settings: Settings, listener: socket) -> AsyncIterator[tuple[Nagaya, asyncio.Future[None]]]:
    """The real server, in this process, for as long as the block lasts."""
    from nagaya.cli.serving import Announcing, configured, ignore_again
    from nagaya.server.app import Application

    application = Application(settings)
    server = Announcing(configured(settings, application), settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ignore_again)
    ended = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        await server.settled.wait()
        if application.problem is not None:
            raise application.problem
        yield application.nagaya, ended
    finally:
        server.should_exit = True
        await asyncio.wait({ended})
        if not ended.cancelled():
            ended.exception()
