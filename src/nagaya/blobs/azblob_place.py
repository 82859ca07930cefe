"""Where a container is, as its address says."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from nagaya.errors import InvalidValue

MAX_PREFIX: Final = 200
_HOST: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?(?::\d{1,5})?")
_CONTAINER: Final = re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,63}(?:/[A-Za-z0-9_-]{1,63})*")
_ACCOUNT: Final = re.compile(r"[a-z0-9]{3,24}")
_OPTIONS: Final = ("account", "region")


class AzurePlace(NamedTuple):
    """A storage account (its name, or its host), a container, a prefix in it, and the region it lies in."""

    host: str
    path: str
    container: str
    prefix: str
    region: str

    def name(self, room: str, name: str) -> str:
        """The whole name of a room's blob. A room's name has no slash, so no name of one is a name of another."""
        return f"{self.prefix}/{room}/{name}" if self.prefix else f"{room}/{name}"

    @property
    def account(self) -> str:
        """The storage account's name, by which addresses are signed."""
        return self.path or self.host.partition(".")[0]

    def __str__(self) -> str:
        return f"azblob://{self.host}/{self.container}/{self.prefix}".rstrip("/")


def azure_place(url: str) -> AzurePlace:
    """What an address says. Raises ``InvalidValue``."""
    head, _, query = url.partition("?")
    host, _, rest = head.removeprefix("azblob://").partition("/")
    container, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    options: dict[str, str] = {}
    for pair in filter(None, query.split("&")):
        name, _, value = pair.partition("=")
        if name not in _OPTIONS or name in options:
            raise InvalidValue(param="blobs", at="blobs", detail=f"'{name[:32]}' is not known; use region or account")
        options[name] = value
    path = options.get("account", "")
    if (
        not head.startswith("azblob://")
        or not _HOST.fullmatch(host)
        or not _CONTAINER.fullmatch(container)
        or (prefix and not _PREFIX.fullmatch(prefix))
        or len(prefix) > MAX_PREFIX
        or (path and not _ACCOUNT.fullmatch(path))
    ):
        raise InvalidValue(param="blobs", at="blobs", detail="use azblob://account/container[/prefix][?region=…]")
    return AzurePlace(host, path, container, prefix, options.get("region", ""))
