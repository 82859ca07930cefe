"""The gate: who is it, which tenant, may it now."""
