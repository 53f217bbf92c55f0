"""The OpenAI Realtime face: POST /v1/realtime/calls and what belongs to it.

Thin: it turns HTTP into `Calls.create` and back. Its shapes (201, Location,
error bodies, multipart fields) are those that OpenAI's browser SDK expects.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import hdrs, web

from controlplane.calls import Calls, CapacityError
from controlplane.errors import ApiError, unknown_model
from controlplane.multipart import FormError, parse_form
from controlplane.sdp import MAX_BYTES as MAX_SDP_BYTES
from controlplane.sdp import SdpError
from controlplane.tokens import is_call_id
from dataplane.config import Backend
from dataplane.shm.enums import Counter
from dataplane.shm.workers import WorkerRow

MAX_OPTIONS_BYTES = 15360
"""Of the session JSON; a row of the session table holds as much."""
# Both fields and what multipart adds around them.
MAX_FORM_BYTES = MAX_SDP_BYTES + MAX_OPTIONS_BYTES + 8192

_PATH = "/v1/realtime/calls"


@dataclass(frozen=True)
class PostedOffer:
    """What a POST carries."""

    sdp: bytes
    session: bytes = b""
    """JSON object, as it came."""
    model: Any = None
    """The session's "model", of whatever type."""


class RealtimeFace:
    """HTTP in front of `Calls`."""

    def __init__(self, calls: Calls, backends: tuple[Backend, ...], row: WorkerRow) -> None:
        self._calls = calls
        self._backend_ids = {backend.name: i for i, backend in enumerate(backends)}
        self._row = row
        self._started_unix_s = int(time.time())

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(_PATH, self._create),
            web.post(_PATH + "/{call_id}/hangup", self._hang_up),
            web.get("/v1/models", self._models),
        ]

    async def _create(self, request: web.Request) -> web.Response:
        self._row.count(Counter.OFFERS)
        try:
            offer = await _read_offer(request)
            backend_id = self._choose_backend(request.query.get("model", offer.model))
            return self._answer(offer.sdp, backend_id, offer.session)
        except (ApiError, web.HTTPException):
            self._row.count(Counter.OFFERS_REFUSED)
            raise

    def _answer(self, sdp: bytes, backend_id: int, options: bytes) -> web.Response:
        try:
            call, answer = self._calls.create(sdp, backend_id, options, time.monotonic_ns())
        except SdpError as error:
            raise ApiError(400, str(error), code=error.code, param="sdp") from None
        except CapacityError as error:
            headers = {"Retry-After": str(error.retry_after_s)}
            raise ApiError(503, str(error), code=error.code, headers=headers) from None
        return web.Response(
            status=201,
            body=answer.encode(),
            content_type="application/sdp",
            headers={hdrs.LOCATION: f"{_PATH}/{call.call_id}"},
        )

    def _choose_backend(self, model: Any) -> int:
        """By name; without one the only backend that there is."""
        known = list(self._backend_ids)
        if model is None:
            if len(known) == 1:
                return 0
            names = ", ".join(known) or "none is configured"
            raise ApiError(
                400,
                f"which backend? Add ?model=NAME; the known ones: {names}",
                code="model_required",
                param="model",
            )
        if not isinstance(model, str) or model not in self._backend_ids:
            raise unknown_model(str(model), known)
        return self._backend_ids[model]

    async def _hang_up(self, request: web.Request) -> web.Response:
        call_id = request.match_info["call_id"]
        call = self._calls.get(call_id) if is_call_id(call_id) else None
        if call is None:
            raise unknown_call()
        if self._calls.hang_up(call, time.monotonic_ns()):
            self._row.count(Counter.CALLS_HANGUP)
        return web.json_response({"id": call.call_id, "ended": call.ended})

    async def _models(self, request: web.Request) -> web.Response:
        models = [
            {
                "id": name,
                "object": "model",
                "created": self._started_unix_s,
                "owned_by": "earshot",
            }
            for name in self._backend_ids
        ]
        return web.json_response({"object": "list", "data": models})


def unknown_call() -> ApiError:
    """The same for an id that never was and one that is forgotten."""
    return ApiError(
        404,
        "no call has this id; ended calls are forgotten after a minute",
        code="call_not_found",
        param="call_id",
    )


async def _read_offer(request: web.Request) -> PostedOffer:
    """The offer and the session's JSON, from either kind of body."""
    if request.content_type == "application/sdp":
        # One byte too many is enough for the parser to say which line it is in.
        return PostedOffer(await _read_body(request, MAX_SDP_BYTES + 1))
    if request.content_type == "multipart/form-data":
        return await _read_form(request)
    hint = ""
    if request.content_type == "application/json":
        hint = ", not as JSON: put the session's JSON into the form"
    raise ApiError(
        415,
        "send the offer as application/sdp, or as multipart/form-data with the fields sdp and"
        f" session{hint}",
        code="unsupported_media_type",
        headers={"Accept-Post": "application/sdp, multipart/form-data"},
    )


async def _read_body(request: web.Request, limit: int) -> bytes:
    """At most `limit` bytes of the body."""
    body = bytearray()
    while len(body) < limit and (chunk := await request.content.read(limit - len(body))):
        body += chunk
    return bytes(body)


async def _read_form(request: web.Request) -> PostedOffer:
    body = await _read_body(request, MAX_FORM_BYTES + 1)
    if len(body) > MAX_FORM_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_FORM_BYTES, len(body))
    try:
        fields = parse_form(request.headers[hdrs.CONTENT_TYPE], body)
    except FormError as error:
        raise ApiError(400, str(error), code="bad_form") from None
    if "sdp" not in fields:
        raise ApiError(400, "the form has no field named sdp", code="missing_sdp", param="sdp")
    if "session" not in fields:
        return PostedOffer(fields["sdp"])
    session = fields["session"]
    return PostedOffer(fields["sdp"], session, _parse_session(session).get("model"))


def _parse_session(text: bytes) -> dict[str, Any]:
    if len(text) > MAX_OPTIONS_BYTES:
        raise ApiError(
            400,
            f"the session's JSON is longer than {MAX_OPTIONS_BYTES} bytes",
            code="session_too_large",
            param="session",
        )
    try:
        session = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ApiError(
            400, f"the session is not JSON: {error}", code="invalid_json", param="session"
        ) from None
    if not isinstance(session, dict):
        raise ApiError(
            400, "the session must be a JSON object", code="invalid_session", param="session"
        )
    return session
