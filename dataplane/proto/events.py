"""JSON events of the edge's own, for the client's data channel and the backend's EVENT.

Each function gives the JSON text. The names that OpenAI's Realtime clients know are spelled
as they know them; what only Earshot says is called ``earshot.*``.
"""

from __future__ import annotations

import orjson


def _backend(what: str, backend: str, message: str) -> bytes:
    return orjson.dumps({"type": f"earshot.backend.{what}", "backend": backend, "message": message})


def backend_unavailable(backend: str) -> bytes:
    """Nobody listens on the backend's socket; it is tried again."""
    message = "The backend is not running. The call goes on, and it is tried again."
    return _backend("unavailable", backend, message)


def backend_ready(backend: str) -> bytes:
    """The backend answered READY after it had been away."""
    return _backend("ready", backend, "The backend is there.")


def backend_refused(backend: str) -> bytes:
    """The backend answered what the edge cannot serve."""
    message = "The backend answered what the edge cannot serve. It is tried again."
    return _backend("refused", backend, message)


def backend_lost(backend: str) -> bytes:
    """The backend went away during the call; it is tried again."""
    message = "The backend went away. The call goes on, and it is tried again."
    return _backend("lost", backend, message)


def output_audio_buffer_started() -> bytes:
    """The first frame of an utterance leaves for the client."""
    return orjson.dumps({"type": "output_audio_buffer.started"})


def output_audio_buffer_stopped() -> bytes:
    """The last frame of an utterance has left."""
    return orjson.dumps({"type": "output_audio_buffer.stopped"})


def output_audio_buffer_cleared() -> bytes:
    """What was queued was dropped on the backend's word."""
    return orjson.dumps({"type": "output_audio_buffer.cleared"})


def error(kind: str, message: str, code: str | None = None, param: str | None = None) -> bytes:
    """kind: error.type, such as "playout_overrun". message: for people."""
    body = {"type": kind, "code": code, "message": message, "param": param}
    return orjson.dumps({"type": "error", "error": body})
