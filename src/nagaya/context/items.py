"""Items: what a conversation is made of, in the shapes of the OpenAI API.

A stored item is the JSON that a client sees, a line feed, and a JSON of what only Nagaya needs (who wrote it, when,
which response). So a page of items is a join of stored bytes: nothing is decoded on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from nagaya.context.tool_items import (
    FileSearchCall,
    FoundPassage,
    McpApprovalRequest,
    McpApprovalResponse,
    McpCall,
    McpListTools,
    McpTool,
)
from nagaya.errors import InvalidType, InvalidValue, MissingParameter, UnknownParameter

ItemStatus = Literal["in_progress", "completed", "incomplete"]
Phase = Literal["commentary", "final_answer"]
MessageRole = Literal["user", "assistant", "system", "developer"]

MAX_ITEMS_PER_CALL = 20
"""Items in one create call (OpenAI's limit)."""


class InputText(msgspec.Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True):
    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class Refusal(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    refusal: str


class InputImage(msgspec.Struct, tag_field="type", tag="input_image", forbid_unknown_fields=True):
    detail: Literal["low", "high", "auto", "original"] = "auto"
    image_url: str | None = None
    file_id: str | None = None


class InputFile(msgspec.Struct, tag_field="type", tag="input_file", forbid_unknown_fields=True, omit_defaults=True):
    file_id: str | None = None
    filename: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    detail: Literal["low", "high", "auto"] | None = None


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text", forbid_unknown_fields=True):
    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text", forbid_unknown_fields=True):
    text: str


Part = InputText | OutputText | Refusal | InputImage | InputFile | ReasoningText | SummaryText


class Message(msgspec.Struct, tag_field="type", tag="message", kw_only=True):
    """A message of a user, an assistant, or the developer. ``id`` is empty until the message is stored."""

    id: str = ""
    status: ItemStatus = "completed"
    role: MessageRole
    content: list[Part]
    phase: Phase | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def user(cls, text: str) -> Message:
        """A user's message."""
        return cls(role="user", content=[InputText(text)])

    @classmethod
    def assistant(cls, text: str) -> Message:
        """An assistant's answer."""
        return cls(role="assistant", content=[OutputText(text)])

    @classmethod
    def system(cls, text: str) -> Message:
        """An instruction that stays with the conversation."""
        return cls(role="system", content=[InputText(text)])

    @property
    def text(self) -> str:
        """The text of all its parts, joined."""
        return "".join(part.text for part in self.content if isinstance(part, InputText | OutputText))


class FunctionCall(msgspec.Struct, tag_field="type", tag="function_call", kw_only=True):
    """A function call the model asked for. ``arguments`` is the model's JSON text."""

    id: str = ""
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


class FunctionCallOutput(msgspec.Struct, tag_field="type", tag="function_call_output", kw_only=True):
    """What the function gave back."""

    id: str = ""
    call_id: str
    output: str | list[Part]
    status: ItemStatus = "completed"

    @property
    def text(self) -> str:
        """The output as text; the texts of its parts joined, where it has parts."""
        if isinstance(self.output, str):
            return self.output
        return "".join(part.text for part in self.output if isinstance(part, InputText | OutputText))


class Reasoning(msgspec.Struct, tag_field="type", tag="reasoning", kw_only=True, omit_defaults=True):
    """A reasoning item of a model, kept so that it can be sent back to it."""

    id: str = ""
    summary: list[Part]
    content: list[Part] | None = None
    encrypted_content: str | None = None
    status: ItemStatus | None = None


class ItemReference(msgspec.Struct, frozen=True):
    """Stands for an item of the same conversation or of an earlier response."""

    id: str


Item = (
    Message
    | FunctionCall
    | FunctionCallOutput
    | Reasoning
    | FileSearchCall
    | McpListTools
    | McpCall
    | McpApprovalRequest
    | McpApprovalResponse
)


class Hidden(msgspec.Struct, frozen=True):
    """Stands at an item's place for something of a client's own that only this client reads."""

    body: bytes


_UNSET = msgspec.UNSET


class ItemIn(msgspec.Struct, forbid_unknown_fields=True):
    """Any input item as a client may send it; ``read_item`` tells which fields belong together."""

    type: str | None = "message"
    id: str | None = None
    status: ItemStatus | Literal["searching", "calling", "failed"] | None = None
    role: str | msgspec.UnsetType = _UNSET
    content: str | list[Part] | msgspec.UnsetType | None = _UNSET
    phase: Phase | msgspec.UnsetType | None = _UNSET
    call_id: str | msgspec.UnsetType = _UNSET
    name: str | msgspec.UnsetType = _UNSET
    arguments: str | msgspec.UnsetType = _UNSET
    output: str | list[Part] | msgspec.UnsetType = _UNSET
    summary: list[Part] | msgspec.UnsetType = _UNSET
    encrypted_content: str | msgspec.UnsetType | None = _UNSET
    queries: list[str] | msgspec.UnsetType = _UNSET
    results: list[FoundPassage] | msgspec.UnsetType | None = _UNSET
    server_label: str | msgspec.UnsetType = _UNSET
    tools: list[McpTool] | msgspec.UnsetType = _UNSET
    error: str | msgspec.UnsetType | None = _UNSET
    approval_request_id: str | msgspec.UnsetType | None = _UNSET
    approve: bool | msgspec.UnsetType = _UNSET
    reason: str | msgspec.UnsetType | None = _UNSET


class ItemMeta(msgspec.Struct, omit_defaults=True):
    """What only Nagaya sees of an item: when and by whom it was written, which response and model made it, what tells a
    client's own form of it (see :mod:`nagaya.context.client_forms`), and, of a call whose result no client is shown,
    what the model was told."""

    at: int
    by: str
    response: str | None = None
    model: str | None = None
    form: Any = None
    result: str | None = None


_FIELDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    # type: (required, allowed besides type, id, status)
    "message": (frozenset({"role", "content"}), frozenset({"role", "content", "phase"})),
    "function_call": (frozenset({"call_id", "name", "arguments"}), frozenset({"call_id", "name", "arguments"})),
    "function_call_output": (frozenset({"call_id", "output"}), frozenset({"call_id", "output"})),
    "reasoning": (frozenset({"summary"}), frozenset({"summary", "content", "encrypted_content"})),
    "item_reference": (frozenset({"id"}), frozenset()),
    "file_search_call": (frozenset({"queries"}), frozenset({"queries", "results"})),
    "mcp_list_tools": (frozenset({"server_label", "tools"}), frozenset({"server_label", "tools", "error"})),
    "mcp_call": (
        frozenset({"server_label", "name", "arguments"}),
        frozenset({"server_label", "name", "arguments", "output", "error", "approval_request_id"}),
    ),
    "mcp_approval_request": (
        frozenset({"server_label", "name", "arguments"}), frozenset({"server_label", "name", "arguments"}),
    ),
    "mcp_approval_response": (
        frozenset({"approval_request_id", "approve"}), frozenset({"approval_request_id", "approve", "reason"}),
    ),
}  # fmt: skip
_OPTIONAL = (
    "role", "content", "phase", "call_id", "name", "arguments", "output", "summary", "encrypted_content", "queries",
    "results", "server_label", "tools", "error", "approval_request_id", "approve", "reason",
)  # fmt: skip
_OF_TOOLS: dict[str, type[FileSearchCall | McpListTools | McpCall | McpApprovalRequest | McpApprovalResponse]] = {
    "file_search_call": FileSearchCall,
    "mcp_list_tools": McpListTools,
    "mcp_call": McpCall,
    "mcp_approval_request": McpApprovalRequest,
    "mcp_approval_response": McpApprovalResponse,
}
_STATUSES: dict[str, ItemStatus] = {
    "in_progress": "in_progress", "completed": "completed", "incomplete": "incomplete",
}  # fmt: skip
ROLES: dict[str, MessageRole] = {
    "user": "user", "assistant": "assistant", "system": "system", "developer": "developer",
}  # fmt: skip


def read_item(given: ItemIn, at: str) -> Item | ItemReference:
    """The item a client meant. Raises an ``invalid_request_error`` that names the parameter under ``at``."""
    kind = given.type or "message"
    if kind == "message" and given.call_id is _UNSET and given.name is _UNSET and given.output is _UNSET:
        return _read_message(given, at)
    if kind not in _FIELDS:
        known = ", ".join(repr(name) for name in _FIELDS)
        raise InvalidValue(param=f"{at}.type", at=f"{at}.type", detail=f"'{kind[:64]}' is not one of {known}")
    required, allowed = _FIELDS[kind]
    for name in _OPTIONAL:
        if getattr(given, name) is not _UNSET and name not in allowed:
            raise UnknownParameter(f"{at}.{name}")
    for name in sorted(required):
        if getattr(given, name) in (_UNSET, None):
            raise MissingParameter(param=f"{at}.{name}", at=f"{at}.{name}")
    if kind == "item_reference":
        return ItemReference(given.id or "")
    if kind in _OF_TOOLS:
        return _read_tool_item(given, kind, at)
    status = _status(given, at)
    if kind == "function_call":
        return FunctionCall(
            call_id=_text(given.call_id), name=_text(given.name), arguments=_text(given.arguments), status=status
        )
    if kind == "function_call_output":
        return FunctionCallOutput(call_id=_text(given.call_id), output=_output(given.output, at), status=status)
    if kind == "reasoning":
        sealed = given.encrypted_content
        return Reasoning(
            summary=_parts(given.summary, SummaryText, f"{at}.summary"),
            content=_parts(given.content, ReasoningText, f"{at}.content") if given.content else None,
            encrypted_content=sealed if isinstance(sealed, str) else None,
            status=None if given.status is None else status,
        )
    return _read_message(given, at)


def text_message(
    role: MessageRole, text: str, status: ItemStatus = "completed", phase: Phase | msgspec.UnsetType = _UNSET
) -> Message:
    """A message of one part, of the kind that its role writes."""
    part: Part = OutputText(text) if role == "assistant" else InputText(text)
    return Message(role=role, content=[part], status=status, phase=phase)


def _read_message(given: ItemIn, at: str) -> Message:
    role = ROLES.get(given.role) if isinstance(given.role, str) else None
    if role is None:
        if given.role is _UNSET:
            raise MissingParameter(param=f"{at}.role", at=f"{at}.role")
        known = ", ".join(repr(name) for name in ROLES)
        raise InvalidValue(param=f"{at}.role", at=f"{at}.role", detail=f"expected one of {known}")
    content = given.content
    if content is _UNSET or content is None:
        raise MissingParameter(param=f"{at}.content", at=f"{at}.content")
    status = _status(given, at)
    phase = given.phase or _UNSET
    if isinstance(content, str):
        return text_message(role, content, status, phase)
    parts: list[Part] = []
    for number, given_part in enumerate(content):
        place = f"{at}.content[{number}]"
        if isinstance(given_part, ReasoningText | SummaryText):
            raise InvalidValue(param=f"{place}.type", at=f"{place}.type", detail="not a message content part")
        if isinstance(given_part, InputImage) and given_part.image_url is None and given_part.file_id is None:
            raise MissingParameter(param=f"{place}.image_url", at=f"{place}.image_url")
        if isinstance(given_part, OutputText | Refusal) != (role == "assistant"):
            raise InvalidValue(param=f"{place}.type", at=f"{place}.type", detail=f"not allowed for role '{role}'")
        parts.append(given_part)
    return Message(role=role, content=parts, status=status, phase=phase)


def _output(given: object, at: str) -> str | list[Part]:
    """A function's output: text, or what a caller may send as input."""
    if not isinstance(given, list):
        return _text(given)
    for number, part in enumerate(given):
        if not isinstance(part, InputText | InputImage | InputFile):
            place = f"{at}.output[{number}].type"
            raise InvalidValue(param=place, at=place, detail="expected 'input_text', 'input_image' or 'input_file'")
    return given


def _status(given: ItemIn, at: str) -> ItemStatus:
    """The status of an item that is no tool's."""
    status = _STATUSES.get(given.status or "completed")
    if status is None:
        raise InvalidValue(param=f"{at}.status", at=f"{at}.status", detail=f"expected one of {', '.join(_STATUSES)}")
    return status


def _read_tool_item(given: ItemIn, kind: str, at: str) -> Item:
    """A tool's item, as a client that keeps its own context sends it back."""
    _, allowed = _FIELDS[kind]
    fields = {name: value for name in allowed if (value := getattr(given, name)) is not _UNSET}
    if isinstance(fields.get("output"), list):
        raise InvalidType(param=f"{at}.output", at=f"{at}.output", detail="expected a string")
    # The status is not the client's to say: a call that it sends has ended.
    return _OF_TOOLS[kind](**fields)


def _text(given: object) -> str:
    assert isinstance(given, str)
    return given


def _parts(given: object, type_: type[Part], at: str) -> list[Part]:
    """``given`` as parts of one type, or a refusal."""
    if not isinstance(given, list) or not all(isinstance(part, type_) for part in given):
        raise InvalidType(param=at, at=at, detail=f"expected an array of {type_.__struct_config__.tag} parts")
    return given


def read_items(given: Sequence[ItemIn], at: str = "items") -> list[Item]:
    """Items to store; references are refused here, since there is nothing to store in them."""
    items: list[Item] = []
    for number, one in enumerate(given):
        item = read_item(one, f"{at}[{number}]")
        if isinstance(item, ItemReference):
            raise InvalidValue(param=f"{at}[{number}].type", at=f"{at}[{number}].type", detail="not a storable item")
        items.append(item)
    return items


class _Id(msgspec.Struct):
    id: str


_encoder = msgspec.json.Encoder()
_meta_decoder = msgspec.json.Decoder(ItemMeta)
_items_decoder: msgspec.json.Decoder[list[Item]] = msgspec.json.Decoder(list[Item])
_id_decoder = msgspec.json.Decoder(_Id)
_item_decoder: msgspec.json.Decoder[Item] = msgspec.json.Decoder(Item)


def stored(item: Item, meta: ItemMeta) -> bytes:
    """The bytes to seal for an item that has its id."""
    return b"%b\n%b" % (_encoder.encode(item), _encoder.encode(meta))


def wire(stored_bytes: bytes) -> bytes:
    """The client's JSON inside stored bytes. JSON text never holds a raw line feed here, so the first one ends it."""
    return stored_bytes[: stored_bytes.index(b"\n")]


def wires(bodies: Sequence[bytes]) -> list[bytes]:
    """As :func:`wire`, of a whole page."""
    return [body[: body.index(b"\n")] for body in bodies]


def load_item(stored_bytes: bytes) -> Item:
    """A stored item as an object."""
    return _item_decoder.decode(stored_bytes[: stored_bytes.index(b"\n")])


def id_of(stored_bytes: bytes) -> str:
    """A stored item's id, without making an object of the rest."""
    return _id_decoder.decode(stored_bytes[: stored_bytes.index(b"\n")]).id


def load_items(stored_bodies: Sequence[bytes]) -> list[Item]:
    """Stored items as objects; one decoding for all of them costs two thirds of one each."""
    return _items_decoder.decode(b"[%b]" % b",".join([body[: body.index(b"\n")] for body in stored_bodies]))


def load_meta(stored_bytes: bytes) -> ItemMeta:
    """What only Nagaya sees of a stored item."""
    return _meta_decoder.decode(stored_bytes.partition(b"\n")[2])


def load_results(stored_bodies: Sequence[bytes]) -> dict[str, str]:
    """What the model was told of the calls among stored items whose results no client is shown, by the items' ids."""
    found = {}
    for body in stored_bodies:
        end = body.index(b"\n")
        if b'"result":' in body[end:]:
            told = _meta_decoder.decode(body[end + 1 :]).result
            if told is not None:
                found[_item_decoder.decode(body[:end]).id] = told
    return found
