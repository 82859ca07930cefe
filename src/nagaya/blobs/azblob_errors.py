"""What Azure Blob Storage says, in one table: vendor code → our error."""

from __future__ import annotations

import math

from azure.core.exceptions import AzureError

from nagaya.clouds.azure import retry_after_s, sign_in_refused, status_of
from nagaya.errors import BlobsUnreachable, ConditionFailed, InvalidValue, NagayaError, PermissionMissing

_CONDITION = frozenset({"ConditionNotMet", "BlobAlreadyExists", "InvalidBlockList", "UnauthorizedBlobOverwrite"})
_ACTION = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/"


def code_of(error: AzureError) -> str:
    """Azure's own name of the error, such as ``BlobNotFound``; empty where it gave none."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def mapped(error: AzureError, action: str, room: str, container: str) -> NagayaError:
    """Ours for an answer that means the same in every call. Shows the code, never Azure's words.

    Another writer that committed meanwhile drops our staged blocks (``InvalidBlockList``): that is a condition too.
    """
    code, status = code_of(error), status_of(error)
    if code in _CONDITION or status == 412:
        return ConditionFailed()
    if code == "ContainerNotFound":
        return InvalidValue(param="blobs", at="blobs", detail=f"there is no container '{container}'")
    refused = sign_in_refused(error, room)
    if refused is not None:
        return refused
    if status == 403:
        where = "Microsoft.Storage/storageAccounts/blobServices/" if action.startswith("generate") else _ACTION
        return PermissionMissing(action=f"{where}{action}", room=room)
    if status == 404:
        return ConditionFailed()  # what was to be replaced is not there
    wait_s = retry_after_s(error)
    return BlobsUnreachable(retry_after_s=None if wait_s is None else math.ceil(wait_s))
