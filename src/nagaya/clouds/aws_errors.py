"""What AWS says, in one table: vendor code → what kind of trouble it is."""

from __future__ import annotations

import re
from enum import Enum
from typing import Any, Final

import aiohttp
from botocore.exceptions import (  # type: ignore[import-untyped]  # botocore ships no types
    ClientError,
    ConnectionError,
    ConnectTimeoutError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]  # botocore ships no types

from nagaya.errors import CloudCredentialsRefused, NagayaError, PermissionMissing


class Trouble(Enum):
    """A kind of failure, as far as a caller has to tell it apart."""

    THROTTLED = "throttled"
    """Not done, for there was too much; repeat later."""
    BUSY = "busy"
    """Not done, for somebody else was at it; repeat soon."""
    AWAY = "away"
    """Not known whether it was done."""
    DENIED = "denied"
    CREDENTIALS = "credentials"
    MISSING = "missing"
    EXISTS = "exists"
    CONDITION = "condition"
    CANCELLED = "cancelled"
    DISABLED = "disabled"
    DESTROYED = "destroyed"
    BROKEN = "broken"
    UNKNOWN_OPERATION = "unknown operation"
    OTHER = "other"


TROUBLES: Final[dict[str, Trouble]] = {
    "ProvisionedThroughputExceededException": Trouble.THROTTLED,
    "RequestLimitExceeded": Trouble.THROTTLED,
    "ThrottlingException": Trouble.THROTTLED,
    "Throttling": Trouble.THROTTLED,
    "ThrottledException": Trouble.THROTTLED,
    "TooManyRequestsException": Trouble.THROTTLED,
    "LimitExceededException": Trouble.THROTTLED,
    "SlowDown": Trouble.THROTTLED,
    "TransactionConflictException": Trouble.BUSY,
    "TransactionInProgressException": Trouble.BUSY,
    "InternalServerError": Trouble.AWAY,
    "InternalServiceError": Trouble.AWAY,
    "InternalServiceErrorException": Trouble.AWAY,
    "InternalFailure": Trouble.AWAY,
    "InternalError": Trouble.AWAY,
    "KMSInternalException": Trouble.AWAY,
    "DependencyTimeoutException": Trouble.AWAY,
    "KeyUnavailableException": Trouble.AWAY,
    "ServiceUnavailable": Trouble.AWAY,
    "ServiceUnavailableException": Trouble.AWAY,
    "RequestTimeout": Trouble.AWAY,
    "AccessDenied": Trouble.DENIED,
    "AccessDeniedException": Trouble.DENIED,
    "UnauthorizedOperation": Trouble.DENIED,
    "ExpiredToken": Trouble.CREDENTIALS,
    "ExpiredTokenException": Trouble.CREDENTIALS,
    "InvalidClientTokenId": Trouble.CREDENTIALS,
    "UnrecognizedClientException": Trouble.CREDENTIALS,
    "InvalidSignatureException": Trouble.CREDENTIALS,
    "SignatureDoesNotMatch": Trouble.CREDENTIALS,
    "IncompleteSignature": Trouble.CREDENTIALS,
    "MissingAuthenticationToken": Trouble.CREDENTIALS,
    "InvalidAccessKeyId": Trouble.CREDENTIALS,
    "RegionDisabledException": Trouble.CREDENTIALS,
    "ResourceNotFoundException": Trouble.MISSING,
    "TableNotFoundException": Trouble.MISSING,
    "NotFoundException": Trouble.MISSING,
    "NoSuchBucket": Trouble.MISSING,
    "ResourceInUseException": Trouble.EXISTS,
    "ResourceExistsException": Trouble.EXISTS,
    "AlreadyExistsException": Trouble.EXISTS,
    "ConditionalCheckFailedException": Trouble.CONDITION,
    "DisabledException": Trouble.DISABLED,
    "InvalidCiphertextException": Trouble.BROKEN,
    "IncorrectKeyException": Trouble.BROKEN,
    "UnknownOperationException": Trouble.UNKNOWN_OPERATION,
}

_ACTION: Final = re.compile(r"perform: ?([A-Za-z0-9-]+:[A-Za-z0-9*]+)")


class AwsRefusal(Exception):
    """An answer of AWS that no repeating helps. ``doubtful``: an earlier try of the same call may have been done."""

    def __init__(self, trouble: Trouble, error: Any, *, doubtful: bool) -> None:
        super().__init__(trouble.value)
        self.trouble = trouble
        self.answer: dict[str, Any] = error.response
        self.doubtful = doubtful
        self.error: Exception = error


def trouble_of(error: ClientError) -> Trouble:
    """The kind of trouble that an error answer means."""
    code = error.response.get("Error", {}).get("Code", "")
    found = TROUBLES.get(code)
    if found is Trouble.DENIED and "ciphertext refers to" in error.response["Error"].get("Message", ""):
        # KMS was told which key to use: it is the ciphertext that names another.
        return Trouble.BROKEN
    if found is not None:
        return found
    if code == "TransactionCanceledException":
        reasons = {reason.get("Code") for reason in error.response.get("CancellationReasons") or ()}
        if "ConditionalCheckFailed" not in reasons:
            if reasons & {"ThrottlingError", "ProvisionedThroughputExceeded"}:
                return Trouble.THROTTLED
            if "TransactionConflict" in reasons:
                return Trouble.BUSY
        return Trouble.CANCELLED
    if code == "KMSInvalidStateException":
        words = error.response["Error"].get("Message", "").lower()
        return Trouble.DESTROYED if "delet" in words else Trouble.DISABLED
    return Trouble.AWAY if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500 else Trouble.OTHER


def was_never_sent(error: Exception) -> bool:
    """Whether the connection failed before anything of the request left this machine."""
    if isinstance(error, ConnectTimeoutError):
        return True
    return isinstance(getattr(error, "kwargs", {}).get("error"), aiohttp.ClientConnectorError)


def is_connection_error(error: Exception) -> bool:
    """Whether the trouble was on the way, not in what was asked."""
    return isinstance(error, HTTPClientError | ConnectionError | ResponseParserError)


def refused(error: ClientError, room: str) -> NagayaError | None:
    """Ours for what an operator has to mend: a missing permission, or credentials that do not hold. Else None."""
    trouble = trouble_of(error)
    if trouble is Trouble.DENIED:
        words = _ACTION.search(error.response.get("Error", {}).get("Message", ""))
        return PermissionMissing(action=words[1] if words else f"…:{error.operation_name}", room=room)
    if trouble is Trouble.CREDENTIALS:
        return CloudCredentialsRefused(room=room, detail=error.response["Error"]["Code"])
    return None


def without_credentials(error: Exception, room: str) -> NagayaError | None:
    """Ours where this machine has no credentials of its own. Else None."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return CloudCredentialsRefused(room=room, detail="this machine has none")
    return None
