"""``nagaya serve``: the server in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from nagaya.cli.place import Place


def serve(
    place: Place,
    host: Annotated[str | None, typer.Option("--host", help="Where to listen  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="[default: 8700]")] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=64, help="Processes on the folder  [default: 1]")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error  [default: info]")
    ] = None,
) -> None:
    """Serve the data folder over HTTP until SIGTERM or Ctrl-C; open streams get to end first."""
    from nagaya.cli.serving import run_server

    place.only_here("serve")
    if log_level is not None and log_level not in ("debug", "info", "warning", "error"):
        raise typer.BadParameter("--log-level is debug, info, warning or error")
    settings = place.settings(host=host, port=port, workers=workers, log_level=log_level)
    if run_server(settings):
        raise typer.Exit(1)
