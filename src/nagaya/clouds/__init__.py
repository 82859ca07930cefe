"""A tenant's own cloud account: short-lived credentials and clients, shared by the adapters of all ports."""
