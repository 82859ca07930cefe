"""Azure OpenAI: a deployment in the tenant's own resource, by its key or by an Entra ID identity.

``azure-openai://resource/deployment``. With a key in the tenant's secrets the key is used; else the service principal
of the secret ``azure-connection``, which needs the role *Cognitive Services OpenAI User* on the resource; else, towards
Azure's own names alone, the identity of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from nagaya.adapters import Surroundings
from nagaya.errors import CloudCredentialsRefused, CloudUnreachable, InvalidValue, NagayaError, PermissionMissing
from nagaya.kernel.egress import EgressPolicy
from nagaya.models.address import ModelAddress
from nagaya.models.openai_compatible import (
    NO_KEY,
    OpenAICompatibleEmbeddings,
    OpenAICompatibleModel,
    OpenAIConnection,
)

if TYPE_CHECKING:
    import openai

TokenProvider = Callable[[], Awaitable[str]]
"""Gives a bearer token that still holds for a while; asked before every request."""

_OWN_NAMES: Final = {
    ".openai.azure.com": "azure.com",
    ".cognitiveservices.azure.com": "azure.com",
    ".services.ai.azure.com": "azure.com",
    ".openai.azure.us": "azure.us",
    ".cognitiveservices.azure.us": "azure.us",
    ".openai.azure.cn": "azure.cn",
    ".cognitiveservices.azure.cn": "azure.cn",
}
"""Azure's own names of such resources, and the cloud that each lies in."""
_ACTION: Final = re.compile(r"Microsoft\.CognitiveServices/[\w/-]+")
_NETWORK: Final = re.compile(r"virtual network|firewall|public access", re.IGNORECASE)


class AzureOpenAIConnection(OpenAIConnection):
    """One resource of Azure OpenAI. Several deployments may share it.

    Give ``api_key`` or ``token``. ``room`` is named in errors that an operator has to mend; ``release`` is awaited
    when the connection is closed.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        api_version: str,
        policy: EgressPolicy,
        token: TokenProvider | None = None,
        room: str = "",
        read_s: float = 120.0,
        release: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(base_url, None if token is not None else api_key, policy=policy, read_s=read_s)
        self.dialect = "azure"
        self._api_version = api_version
        self._token = token
        self._room = room
        self._release = release

    def _open(self) -> openai.AsyncOpenAI:
        import openai

        http = self._http(key_header="api-key", token=self._token)
        return openai.AsyncAzureOpenAI(
            # All given, so that none is taken from the server's environment. The transport sets the real credential.
            api_key=NO_KEY,
            admin_api_key="",
            organization="",
            project="",
            webhook_secret="",
            azure_endpoint=self._base_url,
            api_version=self._api_version,
            http_client=http,
            timeout=http.timeout,
            max_retries=0,
        )

    def error_of(self, problem: Exception, *, begun: bool = False) -> NagayaError:
        """As for every server of OpenAI's kind, and for an identity also which permission it lacks."""
        import openai

        if isinstance(problem, openai.APIStatusError) and problem.status_code in (401, 403):
            if _NETWORK.search(problem.message):
                return PermissionMissing(action="network access to the Azure OpenAI resource", room=self._room)
            if self._token is not None:
                return self._refused(problem)
        return super().error_of(problem, begun=begun)

    def _refused(self, problem: openai.APIStatusError) -> NagayaError:
        action = _ACTION.search(problem.message)
        if action is None and problem.status_code == 401 and problem.code != "PermissionDenied":
            return CloudCredentialsRefused(room=self._room, detail="Azure OpenAI did not take the token")
        named = action[0] if action else "Microsoft.CognitiveServices/accounts/OpenAI/deployments/*/action"
        return PermissionMissing(action=f"{named} (Cognitive Services OpenAI User)", room=self._room)

    async def close(self) -> None:
        """Close all connections, and the account that tokens came from. May be called again."""
        await super().close()
        release, self._release = self._release, None
        if release is not None:
            await release()


async def open_model(address: ModelAddress, surroundings: Surroundings, api_key: str | None) -> OpenAICompatibleModel:
    """The chat deployment at an address. Nothing is asked of Azure yet.

    Raises ``ConnectionSecretInvalid``, and ``InvalidValue`` where the machine's identity would go to a foreign host.
    """
    return OpenAICompatibleModel(await _connection(address, surroundings, api_key), address.model)


async def open_embeddings(
    address: ModelAddress, surroundings: Surroundings, api_key: str | None
) -> OpenAICompatibleEmbeddings:
    """The embedding deployment at an address. Raises what :func:`open_model` raises."""
    assert address.dimensions is not None
    connection = await _connection(address, surroundings, api_key)
    return OpenAICompatibleEmbeddings(connection, address.model, dimensions=address.dimensions)


async def _connection(address: ModelAddress, surroundings: Surroundings, api_key: str | None) -> AzureOpenAIConnection:
    token, release = (None, None) if api_key else await _identity(address, surroundings)
    return AzureOpenAIConnection(
        address.base_url,
        api_key,
        api_version=address.api_version,
        policy=surroundings.egress,
        token=token,
        room=surroundings.room,
        read_s=surroundings.settings.model_deadline_s,
        release=release,
    )


async def _identity(
    address: ModelAddress, surroundings: Surroundings
) -> tuple[TokenProvider, Callable[[], Awaitable[None]]]:
    """What gives tokens for the resource, and what lets go of it."""
    from nagaya.clouds import azure

    account = await azure.AzureAccount.open(surroundings)
    cloud = next((cloud for suffix, cloud in _OWN_NAMES.items() if address.host.endswith(suffix)), None)
    if account.connection is None and cloud is None and not surroundings.egress.allows(address.host, address.port):
        # The machine's own token would be handed to whoever keeps that host.
        await account.close()
        detail = f"without a key or the secret {azure.SECRET} only Azure's own names can be used"
        raise InvalidValue(at="models", detail=detail, param="models")
    scope = f"https://cognitiveservices.{cloud or 'azure.com'}/.default"

    async def token() -> str:
        try:
            return (await (await account.credential()).get_token(scope)).token
        except NagayaError:
            raise
        except Exception as problem:
            refused = azure.sign_in_refused(problem, surroundings.room)
            raise refused or CloudUnreachable(room=surroundings.room) from None

    return token, account.close
