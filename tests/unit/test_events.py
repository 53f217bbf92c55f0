"""The edge's own JSON events."""

from __future__ import annotations

import json

from dataplane.proto import events


def test_backend_events_name_the_backend() -> None:
    for what, make in {
        "unavailable": events.backend_unavailable,
        "ready": events.backend_ready,
        "refused": events.backend_refused,
        "lost": events.backend_lost,
    }.items():
        event = json.loads(make("echo"))
        assert event["type"] == f"earshot.backend.{what}"
        assert event["backend"] == "echo"
        # It is for the client: no path of this machine, no error text of its own.
        assert "/" not in event["message"]


def test_output_audio_buffer_events_as_realtime_clients_know_them() -> None:
    assert json.loads(events.output_audio_buffer_started()) == {
        "type": "output_audio_buffer.started"
    }
    assert json.loads(events.output_audio_buffer_stopped()) == {
        "type": "output_audio_buffer.stopped"
    }
    assert json.loads(events.output_audio_buffer_cleared()) == {
        "type": "output_audio_buffer.cleared"
    }


def test_error_has_all_four_members() -> None:
    assert json.loads(events.error("playout_overrun", "full", param="audio")) == {
        "type": "error",
        "error": {"type": "playout_overrun", "code": None, "message": "full", "param": "audio"},
    }
