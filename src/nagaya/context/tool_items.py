"""Items of tools that run at the server: what was searched, which remote tool was called, and what came of it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

SearchStatus = Literal["in_progress", "searching", "completed", "incomplete", "failed"]
McpStatus = Literal["in_progress", "completed", "incomplete", "calling", "failed"]


class FoundPassage(msgspec.Struct):
    """A passage that a search gave the model: whose it is, its text, and how well it fits (0 to 1)."""

    file_id: str
    filename: str
    text: str
    score: float
    attributes: dict[str, str | float | bool] = {}


class FileSearchCall(msgspec.Struct, tag_field="type", tag="file_search_call", kw_only=True):
    """A search of the tenant's documents. ``results`` is set where the request asked to see them."""

    id: str = ""
    queries: list[str]
    status: SearchStatus = "completed"
    results: list[FoundPassage] | None = None

    def begun(self) -> FileSearchCall:
        """As it looked when it began."""
        return FileSearchCall(id=self.id, queries=[], status="in_progress")


class McpTool(msgspec.Struct, omit_defaults=True):
    """A tool that an MCP server offers."""

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    annotations: dict[str, Any] | None = None


class McpListTools(msgspec.Struct, tag_field="type", tag="mcp_list_tools", kw_only=True):
    """The tools that an MCP server offered, or why it could not be asked."""

    id: str = ""
    server_label: str
    tools: list[McpTool] = []
    error: str | None = None

    def begun(self) -> McpListTools:
        """As it looked when it began."""
        return McpListTools(id=self.id, server_label=self.server_label)


class McpCall(msgspec.Struct, tag_field="type", tag="mcp_call", kw_only=True):
    """A call of an MCP server's tool. ``arguments`` is the model's JSON text; one of output and error is set."""

    id: str = ""
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: str | None = None
    status: McpStatus = "completed"
    approval_request_id: str | None = None

    def begun(self) -> McpCall:
        """As it looked when it began."""
        return McpCall(
            id=self.id,
            server_label=self.server_label,
            name=self.name,
            arguments="",
            status="in_progress",
            approval_request_id=self.approval_request_id,
        )


class McpApprovalRequest(msgspec.Struct, tag_field="type", tag="mcp_approval_request", kw_only=True):
    """Asks the client whether a tool of an MCP server may be called."""

    id: str = ""
    server_label: str
    name: str
    arguments: str

    def begun(self) -> McpApprovalRequest:
        """As it looked when it began."""
        return self


class McpApprovalResponse(msgspec.Struct, tag_field="type", tag="mcp_approval_response", kw_only=True):
    """The client's answer to such a request."""

    id: str = ""
    approval_request_id: str
    approve: bool
    reason: str | None = None


ToolItem = FileSearchCall | McpListTools | McpCall | McpApprovalRequest
