"""A tenant's room: its opened resources, and the sessions that lease them."""
