"""What every HTTP request passes: host, origin, key, and errors as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from aiohttp.http_exceptions import BadHttpMessage, HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from controlplane.errors import ApiError, encode_error, shown
from controlplane.origins import is_host_allowed, is_origin_allowed
from controlplane.tokens import is_authorized
from dataplane.log import get_logger

log = get_logger()

_PROTECTED = ("/v1/", "/admin/")
_REQUEST_SECONDS = 15.0
"""A whole request, slow senders of bodies included."""
_PREFLIGHT = {
    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST, OPTIONS",
    # The agents SDK for browsers sends the last one.
    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "Authorization, Content-Type, X-OpenAI-Agents-SDK",
    hdrs.ACCESS_CONTROL_MAX_AGE: "600",
}
_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    413: "body_too_large",
    431: "headers_too_large",
}


class OpenRequests:
    """Counts the requests that are being read or answered."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def middleware(self) -> Middleware:
        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._count += 1
            self._none.clear()
            try:
                return await handler(request)
            finally:
                self._count -= 1
                if not self._count:
                    self._none.set()

        return middleware

    async def wait_none(self, seconds: float) -> None:
        """Returns when all are answered, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._none.wait(), seconds)


def http_logger() -> logging.Logger:
    """aiohttp's log without a traceback for each peer that does not speak HTTP;
    such a peer is told 400."""
    logger = logging.getLogger("aiohttp.server")
    logger.addFilter(
        lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))
    )
    return logger


def error_middleware() -> Middleware:
    """Turns whatever a handler raises into a JSON error. No traceback leaves the process."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                return await handler(request)
        except ApiError as error:
            return _response(error.status, error.body, error.headers)
        except web.HTTPException as error:
            return _from_http_exception(request, error)
        except TimeoutError:
            return _plain(408, "the request took too long to arrive")
        except (BadHttpMessage, ConnectionError) as error:
            return _plain(400, f"the request's body cannot be read: {type(error).__name__}")
        except Exception:
            log.exception("http.internal_error", method=request.method, path=request.path)
            return _plain(500, "an internal error; the log of this node has it", "internal_error")

    return middleware


def _from_http_exception(request: web.Request, error: web.HTTPException) -> web.Response:
    """aiohttp's own refusals: no such path, wrong method, body too large."""
    headers: dict[str, str] = {}
    if hdrs.ALLOW in error.headers:
        headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
    message = error.reason
    if error.status == 404:
        message = f"there is nothing at {shown(request.path)}"
    elif error.status == 405:
        message = f"{request.method} is not allowed here; {headers.get(hdrs.ALLOW, '')} is"
    return _plain(error.status, message, headers=headers)


def _plain(
    status: int, message: str, code: str = "", headers: dict[str, str] | None = None
) -> web.Response:
    body = encode_error(status, message, code=code or _CODES.get(status, "error"))
    return _response(status, body, headers or {})


def _response(status: int, body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def access_middleware(api_key: str) -> Middleware:
    """Refuses foreign pages and missing keys; answers preflights."""
    has_key = bool(api_key)

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST)
        if not is_host_allowed(host, has_key=has_key):
            raise ApiError(
                403,
                f"this edge answers on loopback names only while no EARSHOT_API_KEY is set,"
                f" not as {shown(host or '')}",
                code="host_not_allowed",
            )
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not is_origin_allowed(origin, host, has_key=has_key):
            raise ApiError(
                403,
                f"pages of {shown(origin)} may not use this edge while no EARSHOT_API_KEY is set",
                code="origin_not_allowed",
            )
        if _is_preflight(request):
            return web.Response(status=204, headers=_PREFLIGHT)
        if request.path.startswith(_PROTECTED) and not is_authorized(
            request.headers.get(hdrs.AUTHORIZATION), api_key
        ):
            raise ApiError(
                401,
                "this edge wants its key: Authorization: Bearer <EARSHOT_API_KEY>",
                code="invalid_api_key",
                headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
            )
        return await handler(request)

    return middleware


def _is_preflight(request: web.Request) -> bool:
    return (
        request.method == hdrs.METH_OPTIONS
        and hdrs.ORIGIN in request.headers
        and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
    )


def response_headers(api_key: str) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """Headers of every response, errors included: for Application.on_response_prepare."""
    has_key = bool(api_key)

    async def add(request: web.Request, response: web.StreamResponse) -> None:
        headers = response.headers
        headers[hdrs.SERVER] = "earshot"
        headers["X-Content-Type-Options"] = "nosniff"
        headers.setdefault("Referrer-Policy", "no-referrer")
        headers.setdefault(hdrs.CACHE_CONTROL, "no-store")
        headers[hdrs.VARY] = hdrs.ORIGIN
        origin = request.headers.get(hdrs.ORIGIN)
        host = request.headers.get(hdrs.HOST)
        if origin is not None and is_origin_allowed(origin, host, has_key=has_key):
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = "Location, Retry-After"

    return add
