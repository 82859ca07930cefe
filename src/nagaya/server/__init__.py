"""The HTTP server: one door, the OpenAI-compatible routes, the operators' routes, health."""
