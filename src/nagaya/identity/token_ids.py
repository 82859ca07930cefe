"""What stands for one single token or key when it is to be refused."""

from __future__ import annotations

from nagaya.errors import InvalidValue, TokenRefused
from nagaya.identity import api_keys
from nagaya.identity.claims import ID_LIMIT, optional_id
from nagaya.identity.jws import read_object, read_token


def token_ids_of(text: str) -> tuple[str, ...]:
    """The ids under which a token may be refused: of a whole token its ``jti`` and ``uti`` (Entra has one), of a whole
    API key its public id, of anything else the text itself. Verifies nothing. Raises ``InvalidValue`` for none."""
    try:
        if api_keys.looks_like_key(text):
            return (api_keys.key_id_of(text),)
        claims = read_object(read_token(text).payload, "payload")
    except TokenRefused:
        if not 0 < len(text) <= ID_LIMIT or not text.isprintable():
            raise _refuse(f"it is a token, or a token's id of 1 to {ID_LIMIT} printable characters") from None
        return (text,)
    try:
        found = tuple(each for each in (optional_id(claims, "jti"), optional_id(claims, "uti")) if each is not None)
    except TokenRefused:
        found = ()
    if not found:
        raise _refuse("this token has no id of its own; refuse its user or its session")
    return found


def _refuse(detail: str) -> InvalidValue:
    return InvalidValue(param="token", at="token", detail=detail)
