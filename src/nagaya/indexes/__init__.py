"""Search over a tenant's texts by meaning and by words. Bytes in, bytes out: whoever stores them seals them."""
