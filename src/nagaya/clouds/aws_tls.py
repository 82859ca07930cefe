"""One TLS context for all AWS clients of the process that trust the same certificates.

aiobotocore reads the bundle of certificate authorities for every client: 12 to 25 ms of processor time and about half
a MiB, for each tenant's client and for each assumption of a role. A context holds nothing of a tenant: which host is
expected is checked per connection, and connections are not shared.
"""

from __future__ import annotations

import os
import ssl
from functools import lru_cache

from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]  # aiobotocore ships no types
from botocore.httpsession import get_cert_path  # type: ignore[import-untyped]  # botocore ships no types


class SharedTls(AIOHTTPSession):  # type: ignore[misc]  # its base has no types
    """For ``AioConfig(http_session_cls=…)``. Where a client certificate or a proxy is set, as aiobotocore has it."""

    def _build_ssl_contexts(self, proxy_url: str | None) -> tuple[ssl.SSLContext, ssl.SSLContext | None]:
        if self._cert_file or proxy_url or not self._verify:
            contexts: tuple[ssl.SSLContext, ssl.SSLContext | None] = super()._build_ssl_contexts(proxy_url)
            return contexts
        path = get_cert_path(self._verify)
        # A bundle that was replaced on the disk is read anew.
        seen = os.stat(path)
        return _context(path, seen.st_mtime_ns, seen.st_size), None


@lru_cache(maxsize=4)
def _context(path: str, mtime_ns: int, size: int) -> ssl.SSLContext:
    context: ssl.SSLContext = AIOHTTPSession(verify=path)._build_ssl_contexts(None)[0]
    return context
