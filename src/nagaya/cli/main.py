"""``nagaya``: the command line."""

from __future__ import annotations

import sys

import typer

from nagaya import __version__
from nagaya.cli import api_key, audit, bench, connection, demo, issuer, key, member, serve, tenant, token
from nagaya.cli.output import Output
from nagaya.cli.place import command, group

app = group("nagaya", "Nagaya: every tenant its own store, keys, model and sign-in.")
for _module in (tenant, member, connection, key, token, api_key, issuer, audit):
    app.add_typer(_module.app)
command(app, "demo")(demo.demo)
command(app, "serve")(serve.serve)
command(app, "bench")(bench.bench)


def main() -> None:
    """Run the command line and end the process: 0 done, 1 refused or failed, 2 usage."""
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and give its exit code."""
    if arguments == ["--version"]:
        print(f"nagaya {__version__}")
        return 0
    try:
        code = app(args=arguments, prog_name="nagaya", standalone_mode=False)
    except typer.Abort:
        return 1
    except typer.TyperException as wrong:
        if "--json" in arguments:
            message = wrong.format_message()
            shape = {"message": message, "type": "invalid_request_error", "param": None, "code": "usage"}
            Output(as_json=True, language="en").document({"error": shape})
        show = getattr(wrong, "show", None)
        if show is not None:
            show()
        return wrong.exit_code
    return code if isinstance(code, int) else 0
