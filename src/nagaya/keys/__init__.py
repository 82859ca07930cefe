"""Keys: a key service wraps each tenant's keys; the keyring holds them, unwrapped, for 30 seconds at most."""
