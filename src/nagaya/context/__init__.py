"""Context: conversations, responses, chat. The work, done inside a tenant session."""
