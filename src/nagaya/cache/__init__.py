"""Cache: short-lived, bounded, per tenant, never plaintext outside the process."""
