"""Search over a tenant's texts by meaning and by words: bytes in, bytes out. Sealing stays with the caller, through records/."""
