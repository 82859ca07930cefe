"""The OpenAI-compatible routes: they read a call, do one thing in the tenant's context, and shape the reply."""
