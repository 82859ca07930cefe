"""The reference pages of the doors people call: the Python classes and the command line."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

GENERATED = "<!-- Written by docs/generate.py from the code. Change the code, not this page. -->"


def cell(text: str) -> str:
    """A text as one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("``", "`")


# --- Python ---------------------------------------------------------------------------------------------------

_DOORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("nagaya", ("Nagaya", "Message")),
    ("nagaya.settings", ("Settings", "load_settings")),
    ("nagaya.tenancy.principal", ("Entrance", "Principal", "Role", "Scope", "Provider")),
    ("nagaya.tenancy.tenant", ("Tenant", "TenantState", "IsolationLevel", "Tier")),
    ("nagaya.tenancy.bindings", ("IssuerBinding", "Member")),
    ("nagaya.gate.enter", ("Named",)),
    ("nagaya.context.tenant_context", ("TenantContext",)),
    ("nagaya.context.conversations", ("Conversations", "Conversation", "ItemPage", "Page")),
    ("nagaya.context.items", ("FunctionCall", "FunctionCallOutput", "Reasoning")),
    ("nagaya.context.responses", ("Responses",)),
    ("nagaya.context.response_records", ("RecordedResponses", "InputPage")),
    ("nagaya.context.response_shapes", ("ResponseIn", "Response")),
    ("nagaya.context.chat", ("Chat", "ChatIn", "ChatCompletion", "ChatChunk")),
    ("nagaya.context.embedding", ("Embedding",)),
    ("nagaya.lifecycle.tenants", ("TenantOffice", "KeyStatus", "IssuedApiKey")),
    ("nagaya.lifecycle.workspaces", ("Workspaces", "WorkspaceShown", "MemberShown")),
    ("nagaya.asgi", ("TenantMiddleware", "entrance_of")),
)


def python_page() -> str:
    """The public classes and functions with their docstrings."""
    lines = [
        "# Python",
        "",
        GENERATED,
        "",
        "`from nagaya import Nagaya, Message`; the rest is imported from where it is listed. What is not listed here",
        "may change without notice. Everything is `async` and belongs to one event loop. Every error is one of",
        "[errors.md](errors.md).",
        "",
    ]
    for module_name, names in _DOORS:
        module = importlib.import_module(module_name)
        lines += [f"## `{module_name}`", ""]
        for name in names:
            lines += _public(name, getattr(module, name))
    return "\n".join(lines)


def _public(name: str, thing: Any) -> list[str]:
    if inspect.isfunction(thing):
        return [f"### `{name}{_signature(thing)}`", "", _prose(thing), ""]
    lines = [f"### `{name}`", "", _prose(thing), ""]
    fields = getattr(thing, "__struct_fields__", getattr(thing, "_fields", ()))
    if fields:
        lines += [f"Fields: {', '.join(f'`{field}`' for field in fields)}.", ""]
    elif hasattr(thing, "__members__"):
        lines += [f"Values: {', '.join(f'`{member.value}`' for member in thing)}.", ""]
    for attribute, member in vars(thing).items():
        if attribute.startswith("_") or attribute in fields:
            continue
        inner = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if inspect.isfunction(inner):
            kind = "async " if _is_async(inner) else ""
            lines += [f"- `{kind}{attribute}{_signature(inner)}`{_dash(inner)}"]
        elif isinstance(inner, property):
            lines += [f"- `{attribute}`{_dash(inner.fget)}"]
    return [*lines, ""] if lines[-1] else lines


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _signature(function: Any) -> str:
    signature = inspect.signature(function)
    parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
    text = str(signature.replace(parameters=parameters)).replace("'", "")
    # A default that is an object would print its address, another one in every process.
    text = re.sub(r"= <[^>]*>", "= …", text)
    return re.sub(r"\b(?:nagaya|collections|typing)\.[a-z_.]*", "", text)


def _prose(thing: Any) -> str:
    text = inspect.cleandoc(thing.__doc__ or "").replace("``", "`")
    text = re.sub(r":(?:class|meth|func|mod):`~?([^`]+)`", r"`\1`", text)
    # An indented example after "::" becomes a fenced block.
    example = re.compile(r"(?m)^::\n\n((?: {4}.*\n?|\n)+)")
    return example.sub(lambda found: f"```text\n{textwrap.dedent(found[1]).rstrip()}\n```\n", text)


def _dash(thing: Any) -> str:
    text = " ".join(_prose(thing).split())
    return f" – {text}" if text else ""


# --- the command line -----------------------------------------------------------------------------------------


def cli_page() -> str | None:
    """Every command with its arguments and options, from the Typer app; None while there is none."""
    try:
        main = importlib.import_module("nagaya.cli.main")
    except ModuleNotFoundError:
        return None
    import typer.main

    command: Any = typer.main.get_command(main.app)
    lines = [
        "# Command line",
        "",
        GENERATED,
        "",
        "Exit status: 0 done, 1 refused or failed, 2 wrong usage. With `--json`, one JSON document on standard output;",
        "messages go to standard error. The options of `nagaya` itself may also stand after any command below.",
        "",
    ]
    common = {param.name for param in command.params}
    for path, each in _commands("nagaya", command):
        lines += [f"## `{path}`", "", _prose_of_help(each.help), ""]
        arguments = [param for param in each.params if param.param_type_name == "argument"]
        options = [param for param in each.params if param.param_type_name == "option" and not param.hidden]
        for param in arguments:
            many = "…" if param.nargs == -1 else ""
            note = getattr(param, "help", None)
            lines.append(f"- `{param.name.upper()}{many}`{f' – {cell(note)}' if note else ''}")
        for param in options:
            if path != "nagaya" and param.name in common:
                continue
            names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
            if "--help" in param.opts:
                continue
            note = f" – {cell(param.help)}" if param.help else ""
            needed = " (required)" if param.required else ""
            lines.append(f"- {names}{needed}{note}")
        lines.append("")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    if getattr(command, "hidden", False):
        return
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(f"{path} {name}", inner)


def _prose_of_help(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("``", "`").replace("\f", "")
