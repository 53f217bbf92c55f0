"""Refusals as clients see them: ``{"error":{"message","type","param","code"}}``.

The shape and the types are those of OpenAI's API, which the clients of the
Realtime face already read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class ApiError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    @property
    def body(self) -> bytes:
        return encode_error(self.status, self.message, code=self.code, param=self.param)


def encode_error(status: int, message: str, *, code: str, param: str | None = None) -> bytes:
    """The JSON body of an error response."""
    error: dict[str, Any] = {
        "message": message,
        "type": SERVER_ERROR if status >= 500 else INVALID_REQUEST,
        "param": param,
        "code": code,
    }
    return orjson.dumps({"error": error})


def unknown_model(model: str, known: list[str]) -> ApiError:
    """404 that lists what there is."""
    names = ", ".join(known) or "none is configured"
    return ApiError(
        404,
        f"no backend is named {shown(model)}; the known ones: {names}",
        code="model_not_found",
        param="model",
    )


def shown(text: str, limit: int = 80) -> str:
    """A client's text in quotes, made safe to print and not too long."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return f'"{clean}"' if len(clean) <= limit else f'"{clean[:limit]}..."'
