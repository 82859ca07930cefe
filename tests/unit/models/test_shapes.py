"""Schemas and the two shapes of the same wish."""

from __future__ import annotations

from typing import Any

import pytest

from nagaya.models.shapes import chat_response_format, chat_tool_choice, smallest


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "T"),
        ({"type": ["string", "null"]}, "T"),
        ({"type": "integer", "minimum": 4}, 4),
        ({"type": "number", "minimum": "odd"}, 0),
        ({"type": "boolean"}, False),
        ({"type": "null"}, None),
        ({"enum": ["a", "b"]}, "a"),
        ({"const": 7}, 7),
        ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, False),
        ({"oneOf": [{"type": "string"}]}, "T"),
        ({"type": "array", "items": {"type": "string"}}, []),
        ({"type": "array", "items": {"type": "string"}, "minItems": 2}, ["T", "T"]),
        ({"type": "array", "minItems": 10**9}, [None] * 8),
        ({"type": "array", "minItems": "x"}, []),
        ({"type": "object"}, {}),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "string"}}}, {"a": "T"}),
        ({"properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "required": ["b", "zz"]}, {"b": "T"}),
        ({"type": []}, {}),
        ("nonsense", None),
        (None, None),
    ],
)
def test_the_smallest_value_fits_its_schema(schema: object, value: object) -> None:
    assert smallest(schema, "T") == value


def test_a_schema_that_contains_itself_ends() -> None:
    schema: dict[str, Any] = {"type": "object", "required": ["next"]}
    schema["properties"] = {"next": schema}
    assert smallest(schema, "T")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {}},
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
        ),
        ({"type": "json_schema", "json_schema": {"name": "n"}}, {"type": "json_schema", "json_schema": {"name": "n"}}),
    ],
)
def test_a_response_format_is_written_as_chat_completions_does(given: Any, wanted: Any) -> None:
    assert chat_response_format(given) == wanted


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, None),
        ("auto", "auto"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "f"}}),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
            {
                "type": "allowed_tools",
                "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]},
            },
        ),
    ],
)
def test_a_tool_choice_is_written_as_chat_completions_does(given: Any, wanted: Any) -> None:
    assert chat_tool_choice(given) == wanted
