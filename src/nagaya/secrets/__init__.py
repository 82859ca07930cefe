"""Secrets: what a tenant's connections need (model keys, cloud credentials), by the names the guide gives them."""
