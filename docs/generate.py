"""Writes the reference pages that come from the code: ``python docs/generate.py --write`` (or ``--check``).

Each page is a function from the code to its text. ``--check`` ends with status 1 where a page on disk differs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from generate_doors import GENERATED, cell, cli_page, python_page

REFERENCE = Path(__file__).parent / "reference"

# --- errors ---------------------------------------------------------------------------------------------------


def errors_page() -> str:
    """Every error: its code, status, type and both messages, in the order of the source."""
    from nagaya import errors

    lines = [
        "# Errors",
        "",
        GENERATED,
        "",
        'Over HTTP an error is `{"error": {"message", "type", "param", "code"}}` with the status below; in Python it',
        "is an exception of `nagaya.errors`, all of them under `NagayaError`. Branch on `code`, never on the message:",
        "messages follow `Accept-Language` (`en`, `ja`) and may be reworded. `{…}` stands for a fact of the moment.",
        "429 and 503 carry `Retry-After`; 401 carries `WWW-Authenticate: Bearer`.",
        "",
    ]
    for heading, classes in _sections(errors):
        lines += [f"## {heading}", "", "| `code` | status | class | message | 日本語 |", "|---|---|---|---|---|"]
        for kind in classes:
            english = " ".join((kind.__doc__ or "").split())
            cells = (f"`{kind.code}`", str(kind.status), f"`{kind.__name__}`", cell(english), cell(kind.ja))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _sections(module: ModuleType) -> Iterator[tuple[str, list[Any]]]:
    """The classes of a module under the headings that its ``# --- heading ---`` comments give."""
    heading = "The base"
    found: list[Any] = []
    names = iter([node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ClassDef)])
    source = inspect.getsource(module).splitlines()
    marks = {
        number: match[1] for number, line in enumerate(source, 1) if (match := re.match(r"# --- (.+?) -{3,}$", line))
    }
    for node in names:
        before = [text for number, text in marks.items() if number < node.lineno]
        now = before[-1].capitalize() if before else heading
        if now != heading:
            yield heading, found
            heading, found = now, []
        found.append(getattr(module, node.name))
    yield heading, found


# --- settings -------------------------------------------------------------------------------------------------

_MEANINGS = {
    "data": "The data folder: registry, keys, a folder per tenant.",
    "host": "The address to listen on.",
    "port": "The TCP port to listen on.",
    "workers": "Server processes on the one folder.",
    "public_url": "The address clients use, where a proxy stands in front.",
    "log_level": "`debug`, `info`, `warning` or `error`.",
    "log_format": "`json` lines or `text` for people; on standard error.",
    "language": "`en` or `ja`: the language of messages where a request does not ask for one.",
    "key_cache_s": "Seconds a tenant's unwrapped key may be kept. Revocation takes at most so long to hold everywhere.",
    "open_stores": "Tenant files and rooms held open at one time, per process.",
    "store_deadline_s": "Seconds until a store call is given up.",
    "local_issuer": "The prefix of the local issuer's `iss`; the tenant id follows after a slash.",
    "clock_skew_s": "Seconds by which a token's clock may differ from this one's.",
    "jwks_ttl_s": "Seconds after which an issuer's published keys are fetched anew.",
    "body_limit_bytes": "The longest JSON body taken.",
    "body_depth_limit": "The deepest nesting of a JSON body taken.",
    "body_deadline_s": "Seconds within which a body must have arrived.",
    "drain_s": "Seconds that open answers get to end after SIGTERM.",
    "cors_origins": "Origins whose pages may call from a browser. None: CORS is off.",
    "metrics_tenants": "Tenants with a label of their own in `/metrics`; the rest count as `other`.",
    "model_deadline_s": "Seconds until a model call is given up.",
}


def settings_page() -> str:
    """Every setting: its environment variable, type, default, and what it means."""
    from nagaya import settings

    written = _attribute_docs(settings, "Settings")
    lines = [
        "# Settings",
        "",
        GENERATED,
        "",
        "Read once at start, in rising order: the file that `--config` or `NAGAYA_CONFIG` names (TOML, one flat",
        "table with `[[queues]]` at its end), the environment, the command line's flags. An unknown name or a value of",
        "the wrong type is refused by name (`settings_invalid`). Lists are",
        "TOML arrays in the file and separated by commas in the environment.",
        "",
        "| setting | environment | type | default | meaning |",
        "|---|---|---|---|---|",
    ]
    defaults = settings.Settings()
    kinds = {field.name: field.type for field in msgspec.inspect.type_info(settings.Settings).fields}
    for name in settings.Settings.__struct_fields__:
        meaning = written.get(name) or _MEANINGS.get(name)
        if meaning is None:
            raise SystemExit(f"the setting {name} has no docstring")
        value = getattr(defaults, name)
        shown = "–" if value is None or value == () else f"`{value}`"
        kind = _setting_kind(kinds[name])
        lines.append(f"| `{name}` | `NAGAYA_{name.upper()}` | {kind} | {shown} | {cell(meaning)} |")
    lines += [
        "",
        "Secrets are never in the file: `root_key` names where one is.",
        "",
    ]
    return "\n".join(lines)


def _setting_kind(kind: Any) -> str:
    """A setting's type and range in words."""
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(_setting_kind(each) for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return " or ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, msgspec.inspect.IntType | msgspec.inspect.FloatType):
        what = "whole number" if isinstance(kind, msgspec.inspect.IntType) else "number"
        lowest = f"above {kind.gt}" if kind.gt is not None else f"from {kind.ge}"
        return f"{what} {lowest} to {kind.le}"
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return "list of texts" if isinstance(kind.item_type, msgspec.inspect.StrType) else "list of tables"
    return "text"


def _attribute_docs(module: ModuleType, name: str) -> dict[str, str]:
    """The docstrings that stand below a class's attributes."""
    tree = ast.parse(inspect.getsource(module))
    body = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name).body
    found = {}
    for field, after in itertools.pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[field.target.id] = " ".join(str(after.value.value).split()).replace("``", "`")
    return found


# --- HTTP -----------------------------------------------------------------------------------------------------

_ABOUT = {
    "v1": "The OpenAI-compatible API and what goes beyond it. Needs a token or API key of a tenant.",
    "mcp": "The Model Context Protocol: [how](../howto/mcp.md). Needs a token or API key of a tenant.",
    "mem0": "For mem0's clients as they are, over the memories of `/v1/memories`. Takes `Authorization: Token …` too.",
    "admin": "For operators: metadata only, no route here opens a record. Needs an operator's API key.",
    "health": "For load balancers, Prometheus, verifiers of local tokens and clients that sign in by OAuth. Open.",
}


def http_page() -> str:
    """Every route: its path and query parameters, the fields of its body, the fields of its answer."""
    from nagaya.server.openapi import document

    made = document()
    schemas = made["components"]["schemas"]
    lines = [
        "# HTTP",
        "",
        GENERATED,
        "",
        "The same as `/openapi.json`, for reading. `Authorization: Bearer …` carries a token or an API key; the",
        "cookie `access_token` does too, with `X-CSRF-Token` equal to the cookie `csrf_token` on every writing",
        "method. `X-Tenant-Id` may confirm the tenant (a mismatch is 403), never choose it. `Idempotency-Key` on the",
        "POST routes of conversations, items, files, responses and chat completions makes a repeat answer as the",
        "first. Every reply carries `X-Request-Id`. A parameter that is not listed is refused",
        "(`unknown_parameter`). Errors:",
        "[errors.md](errors.md).",
        "",
    ]
    by_tag: dict[str, list[tuple[str, str, Any]]] = {}
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    named: list[str] = []
    for tag, operations in by_tag.items():
        lines += [f"## `/{tag}`" if tag in ("v1", "mcp", "admin") else "## Health and keys", "", _ABOUT[tag], ""]
        for method, path, operation in operations:
            lines += [f"### `{method} {path}`", ""]
            if operation["summary"]:
                lines += [operation["summary"].replace("``", "`"), ""]
            query = [each for each in operation["parameters"] if each["in"] == "query"]
            if query:
                told = ", ".join(f"`{each['name']}` ({_kind(each['schema'], named)})" for each in query)
                lines += [f"Query: {told}.", ""]
            body = operation.get("requestBody")
            if body is not None:
                kind, content = next(iter(body["content"].items()))
                schema = content["schema"]
                form = "" if kind == "application/json" else f" (`{kind}`)"
                about = " ".join(_resolved(schema, schemas).get("description", "").split()).replace("``", "`")
                told = f"Body{form}: {about}".rstrip()
                lines += [told, "", *_fields(schema, schemas, named), ""]
            status, answer = next(iter(operation["responses"].items()))
            kinds = answer["content"]
            first = next(iter(kinds.values()))["schema"]
            told = _kind(first, named) if first else "text"
            if "application/octet-stream" in kinds:
                told = "bytes"
            stream = ", or `text/event-stream`" if "text/event-stream" in kinds else ""
            lines += [f"Answer: {status}, {told}{stream}.", ""]
    lines += ["## Shapes", ""]
    shown: set[str] = set()
    while waiting := [name for name in dict.fromkeys(named) if name not in shown]:
        for name in waiting:
            shown.add(name)
            schema = schemas[name]
            lines += [f"### {_title(name)}", ""]
            if schema.get("description"):
                lines += [" ".join(schema["description"].split()).replace("``", "`"), ""]
            lines += [*_fields(schema, schemas, named), ""]
    return "\n".join(lines)


def _title(name: str) -> str:
    return name.strip("_")


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schemas[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    return found


def _fields(schema: dict[str, Any], schemas: dict[str, Any], named: list[str]) -> list[str]:
    """The fields of an object as a list."""
    schema = _resolved(schema, schemas)
    if "properties" not in schema:
        return [f"- any of: {_kind(schema, named)}" if "anyOf" in schema else "- an object of fields to change"]
    required = set(schema.get("required", ()))
    lines = []
    for name, field in schema["properties"].items():
        kind = _kind(field, named)
        is_needed = name in required and "default" not in field
        default = field.get("default")
        note = " (required)" if is_needed else f"; default `{default}`" if default not in (None, "", [], {}) else ""
        lines.append(f"- `{name}`: {kind}{note}")
    return lines


def _kind(schema: dict[str, Any], named: list[str]) -> str:
    """What a schema takes, in a few words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        named.append(name)
        return f"[{_title(name)}](#{_title(name).lower()})"
    for joined in ("anyOf", "oneOf"):
        if joined in schema:
            kinds = [_kind(each, named) for each in schema[joined] if each.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"] if value is not None)
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_kind(schema.get('items') or {}, named)}" if schema.get("items") else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'], named)}"
    if kind == "integer" and "maximum" in schema:
        return f"whole number {schema['minimum']}–{schema['maximum']}"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return names.get(str(kind), "object" if kind == "object" else "anything")


# --- pages ----------------------------------------------------------------------------------------------------


PAGES: dict[str, Callable[[], str | None]] = {
    "errors.md": errors_page,
    "settings.md": settings_page,
    "http.md": http_page,
    "python.md": python_page,
    "cli.md": cli_page,
}


@dataclasses.dataclass(frozen=True)
class Page:
    """A generated page, and whether what is on disk is the same."""

    path: Path
    text: str

    @property
    def is_current(self) -> bool:
        """Whether the file says what the code says."""
        return self.path.exists() and self.path.read_text("utf-8") == self.text


def pages() -> list[Page]:
    """Every page, made from the code as it is now."""
    made = [(name, make()) for name, make in PAGES.items()]
    return [Page(REFERENCE / name, text.rstrip() + "\n") for name, text in made if text is not None]


def main() -> int:
    """Write or check every page; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--write", action="store_true", help="write the pages that differ")
    wanted.add_argument("--check", action="store_true", help="end with status 1 where a page differs")
    given = parser.parse_args()
    stale = [page for page in pages() if not page.is_current]
    for page in stale:
        if given.write:
            page.path.write_text(page.text, "utf-8")
        print(f"{'written' if given.write else 'stale'}: {page.path.name}")  # noqa: T201  # what a script says
    return 1 if stale and given.check else 0


if __name__ == "__main__":
    sys.exit(main())
