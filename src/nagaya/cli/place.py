"""The options that every command takes, and how a command is run: errors become one line and an exit code.

The options stand before or after the command's name; the later one wins.
"""

from __future__ import annotations

import asyncio
import errno
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from nagaya.cli.output import Output
from nagaya.errors import CommandFailed, NagayaError

if TYPE_CHECKING:
    from nagaya.cli.office import Office
    from nagaya.settings import Settings


class Language(StrEnum):
    EN = "en"
    JA = "ja"


_OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "data": (
        Annotated[str | None, typer.Option("--data", metavar="DIR", help="The data folder  [default: ./nagaya-data]")],
        None,
    ),
    "config": (Annotated[str | None, typer.Option("--config", metavar="FILE", help="A nagaya.toml")], None),
    "url": (
        Annotated[str | None, typer.Option("--url", metavar="URL", help="Speak to a running server instead")],
        None,
    ),
    "key": (
        Annotated[str | None, typer.Option("--key", metavar="KEY", help="Operator API key for --url (or NAGAYA_KEY)")],
        None,
    ),
    "as_json": (Annotated[bool, typer.Option("--json", help="Print one JSON document")], False),
    "lang": (Annotated[Language | None, typer.Option("--lang", help="Language of messages")], None),
}
_COMMON: Final = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)
    for name, (annotation, default) in _OPTIONS.items()
]
_CONTEXT: Final = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


class Place:
    """Where a command works (a folder or a server) and how it answers."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        from nagaya.settings import environment_key, environment_language

        self.data: str | None = given.get("data")
        self.config: str | None = given.get("config")
        self.url: str | None = given.get("url")
        self.key: str | None = given.get("key") or environment_key()
        language = str(given.get("lang") or environment_language())
        self.out = Output(as_json=bool(given.get("as_json")), language=language)
        if self.url is not None and self.data is not None:
            raise typer.BadParameter("--url and --data exclude each other")

    def settings(self, **flags: Any) -> Settings:
        """The settings with these flags over file and environment. Raises ``SettingsInvalid``."""
        from nagaya.settings import load_settings

        return load_settings(config=self.config, flags={"data": self.data, **flags})

    def office(self, *, may_create: bool = False) -> AbstractAsyncContextManager[Office]:
        """The operators' office over the folder or the server. ``may_create``: a folder that is not there is made."""
        from nagaya.cli.office import folder_office, server_office

        if self.url is None:
            return folder_office(self.settings(), may_create=may_create)
        if not self.url.startswith(("http://", "https://")):
            raise typer.BadParameter("--url begins with http:// or https://")
        if self.key is None:
            raise typer.BadParameter("--url needs an operator's API key: --key or NAGAYA_KEY")
        return server_office(self.url, self.key, self.out.language)

    def only_here(self, what: str) -> None:
        """Refuse ``--url`` for a command that runs on this machine."""
        if self.url is not None:
            raise typer.BadParameter(f"nagaya {what} works on a data folder; it takes no --url")


def group(name: str, help_text: str) -> typer.Typer:
    """A group of commands that takes the common options too."""
    app = typer.Typer(name=name, help=help_text, no_args_is_help=True, add_completion=False, rich_markup_mode=None)

    def take(**given: Any) -> None:
        _merge(given.pop("ctx"), given)

    _declare(take, [])
    app.callback(help=help_text)(take)
    return app


def command(app: typer.Typer, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register ``body(place, …)``, a function or a coroutine function, as a command with the common options.

    A ``NagayaError`` ends it with exit code 1, and so does any other failure; usage errors end it with 2.
    """

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(body, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.name != "place"
        ]

        def run(**given: Any) -> None:
            context = given.pop("ctx")
            common = _merge(context, {name: given.pop(name) for name in _OPTIONS})
            _perform(Place(common), body, given)

        _declare(run, own)
        run.__doc__ = body.__doc__
        app.command(name)(run)
        return body

    return register


def _declare(function: Callable[..., None], own: list[inspect.Parameter]) -> None:
    """Let Typer see these parameters and the common ones."""
    function.__signature__ = inspect.Signature([_CONTEXT, *own, *_COMMON])  # type: ignore[attr-defined]  # as PEP 362 has it
    function.__annotations__ = {}


def _merge(context: typer.Context, given: dict[str, Any]) -> dict[str, Any]:
    before: dict[str, Any] = context.obj or {}
    context.obj = before | {name: value for name, value in given.items() if value not in (None, False)}
    merged: dict[str, Any] = context.obj
    return merged


def _perform(place: Place, body: Callable[..., Any], given: dict[str, Any]) -> None:
    try:
        if inspect.iscoroutinefunction(body):
            from nagaya.kernel.telemetry import set_up_logging

            # Standard output is for the result; the log of a short command is of interest only where it warns.
            set_up_logging("debug" if place.settings().log_level == "debug" else "warning", "text")
            asyncio.run(body(place, **given))
        else:
            body(place, **given)
    except NagayaError as refused:
        place.out.problem(refused)
        raise typer.Exit(1) from None
    except (typer.Exit, typer.Abort, typer.TyperException):
        raise
    except KeyboardInterrupt:
        raise typer.Exit(1) from None
    except Exception as failed:
        if isinstance(failed, OSError) and failed.errno == errno.EPIPE:
            raise
        _log_failure(failed)
        place.out.problem(CommandFailed(kind=type(failed).__name__))
        raise typer.Exit(1) from None


def _log_failure(failed: Exception) -> None:
    import structlog

    structlog.get_logger(__name__).debug("a command failed", action="cli.failed", exc_info=failed)
