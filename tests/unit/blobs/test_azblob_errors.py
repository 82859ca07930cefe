"""What Azure may answer and its stand-in never does."""

import pytest
from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    ResourceNotFoundError,
    ServiceRequestError,
)

from nagaya.blobs.azblob_errors import code_of, mapped
from nagaya.errors import (
    BlobsUnreachable,
    CloudCredentialsRefused,
    ConditionFailed,
    InvalidValue,
    PermissionMissing,
)


class Answer:
    """As the vendor's transport gives it."""

    def __init__(self, status, headers):
        self.status_code = status
        self.reason = "no"
        self.headers = headers
        self.content_type = "application/xml"


def error(status, code="", kind=HttpResponseError, **headers):
    made = kind(
        message="a text of Azure's", response=Answer(status, {k.replace("_", "-"): v for k, v in headers.items()})
    )
    if code:
        made.error_code = code
    return made


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (error(412), ConditionFailed),
        (error(409, "BlobAlreadyExists"), ConditionFailed),
        (error(400, "InvalidBlockList"), ConditionFailed),
        (error(404, "ContainerNotFound", ResourceNotFoundError), InvalidValue),
        (error(404, "BlobNotFound", ResourceNotFoundError), ConditionFailed),
        (error(401, "InvalidAuthenticationInfo"), CloudCredentialsRefused),
        (error(401, "AuthenticationFailed", ClientAuthenticationError), CloudCredentialsRefused),
        (error(403, "AuthorizationPermissionMismatch"), PermissionMissing),
        (error(403), PermissionMissing),
        (error(500, "InternalError"), BlobsUnreachable),
        (error(503, "ServerBusy"), BlobsUnreachable),
        (ServiceRequestError("a text of Azure's"), BlobsUnreachable),
        (AzureError("a text of Azure's"), BlobsUnreachable),
    ],
    ids=lambda each: getattr(each, "__name__", str(getattr(each, "error_code", type(each).__name__))),
)
def test_what_azure_says_is_told_in_our_words(given, expected):
    found = mapped(given, "write", "acme", "blobs")
    assert type(found) is expected
    assert "a text of Azure's" not in str(found)


def test_how_long_to_wait_is_told_where_azure_says_so():
    assert mapped(error(503, retry_after="2"), "write", "acme", "blobs").retry_after_s == 2
    assert mapped(error(503), "write", "acme", "blobs").retry_after_s is None


def test_an_error_without_a_code_has_none():
    assert code_of(ServiceRequestError("x")) == ""
