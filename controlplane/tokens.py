"""Names and keys that a client presents. Pure but for the system's randomness."""

from __future__ import annotations

import hmac
import re
import secrets

CALL_ID = re.compile(r"rtc_[0-9a-f]{32}")


def new_call_id() -> str:
    """``rtc_`` and 128 random bits: not to be guessed, for hang-up names it alone."""
    return f"rtc_{secrets.token_hex(16)}"


def is_call_id(text: str) -> bool:
    return CALL_ID.fullmatch(text) is not None


def bearer_token(authorization: str | None) -> str | None:
    """The token of an Authorization header (RFC 6750 section 2.1), or None.

    The scheme's name is compared without regard to case (RFC 9110 section 11.1).
    """
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    return token if scheme.lower() == "bearer" and token else None


def is_authorized(authorization: str | None, api_key: str) -> bool:
    """Whether the header carries the node's key. Without a key everybody may.

    The time it takes does not depend on where the two differ.
    """
    if not api_key:
        return True
    token = bearer_token(authorization)
    if token is None:
        return False
    return hmac.compare_digest(
        token.encode("utf-8", "surrogateescape"), api_key.encode("utf-8", "surrogateescape")
    )
