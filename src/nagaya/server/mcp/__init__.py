"""``/mcp``: Nagaya as a server of the Model Context Protocol, over streamable HTTP."""
