"""One call as the admin API shows it. Pure."""

from __future__ import annotations

from typing import Any

from controlplane.calls import Call
from dataplane.config import Config
from dataplane.shm.enums import BackendState, CallState, Codec, EndReason, SessionState
from dataplane.shm.status import HostPort, Status

_TRANSPORTS = {1: "udp", 2: "tcp"}
# RFC 5764 section 4.1.2, RFC 7714 section 14.2.
_SRTP_PROFILES = {1: "SRTP_AES128_CM_HMAC_SHA1_80", 7: "SRTP_AEAD_AES_128_GCM"}


def view_call(call: Call, status: Status | None, config: Config, now_ns: int) -> dict[str, Any]:
    """status: of this call, None before its first check came."""
    agreed = call.config
    backend_state = BackendState.NONE if status is None else BackendState(status.backend_state)
    return {
        "id": call.call_id,
        "state": state_of(call, status),
        "ended": call.ended or (status is not None and status.state == CallState.ENDED),
        "reason": _reason(call, status),
        "detail": status.detail if status is not None else "",
        "backend": config.backends[agreed.backend_id].name
        if agreed.backend_id < len(config.backends)
        else None,
        "backend_state": backend_state.name.lower(),
        "worker": call.worker,
        "slot": call.slot,
        "generation": call.generation,
        "created_unix_s": agreed.created_unix_ns / 1e9,
        "age_s": round((now_ns - call.offered_ns) / 1e9, 3),
        "codec": Codec(agreed.codec).name.lower(),
        "data_channel": agreed.sctp_port != 0,
        "timeline_ms": _timeline(call, status),
        **_view_status(status),
    }


def state_of(call: Call, status: Status | None) -> str:
    """offered, ice, dtls, connected, closing or ended."""
    if call.ended:
        return "ended"
    if status is not None and status.state == CallState.ENDED:
        return "ended"
    if call.state is SessionState.CLOSING:
        return "closing"
    if status is None or status.state == CallState.NONE:
        return "offered"
    return CallState(status.state).name.lower()


def _reason(call: Call, status: Status | None) -> str | None:
    reason = EndReason(call.config.end_reason) if call.ended else EndReason.NONE
    if reason is EndReason.NONE and status is not None and status.state == CallState.ENDED:
        reason = EndReason(status.end_reason)
    return None if reason is EndReason.NONE else reason.name.lower()


def _timeline(call: Call, status: Status | None) -> dict[str, float | None]:
    """Milliseconds from the offer's arrival."""

    def offset(at_ns: int) -> float | None:
        return round((at_ns - call.offered_ns) / 1e6, 3) if at_ns else None

    return {
        "ice": offset(status.first_stun_ns if status else 0),
        "dtls": offset(status.dtls_started_ns if status else 0),
        "connected": offset(status.connected_ns if status else 0),
        "backend_ready": offset(status.backend_ready_ns if status else 0),
        "first_audio_in": offset(status.first_audio_in_ns if status else 0),
        "first_audio_out": offset(status.first_audio_out_ns if status else 0),
        "ended": offset(call.config.closed_ns if call.ended else status.ended_ns if status else 0),
    }


def _view_status(status: Status | None) -> dict[str, Any]:
    """The figures; all null before the first check, so that the keys are always there."""
    if status is None:
        return dict.fromkeys(_FIGURES)
    return {
        "client": _address(status.client),
        "local": _address(status.local),
        "relay": status.relay,
        "srtp_profile": _SRTP_PROFILES.get(status.srtp_profile),
        "packets": {
            "received": status.packets_received,
            "sent": status.packets_sent,
            "expected": status.packets_expected,
            "lost": status.packets_lost,
            "repaired": status.packets_repaired,
            "late": status.packets_late,
            "duplicate": status.packets_duplicate,
        },
        "bytes": {"received": status.bytes_received, "sent": status.bytes_sent},
        "loss": _share(status.packets_lost, status.packets_expected),
        "rtt_ms": status.rtt_us / 1000 if status.rtt_us else None,
        "jitter_ms": status.jitter_us / 1000,
        "uplink_delay_ms": status.uplink_delay_us / 1000,
        "playout_delay_ms": status.playout_delay_us / 1000,
        "playout_queue_ms": status.playout_queue_ms,
        "concealed_ms": round(status.samples_concealed / 48, 1),
        "audio_dropped_frames": status.audio_dropped_frames,
        "drops": status.drops,
        "remote": {
            "packets_lost": status.remote_packets_lost,
            "loss": _share(status.remote_fraction_lost, 256),
            "jitter_ms": status.remote_jitter_us / 1000,
        },
    }


_FIGURES = (
    "client", "local", "relay", "srtp_profile", "packets", "bytes", "loss", "rtt_ms",
    "jitter_ms", "uplink_delay_ms", "playout_delay_ms", "playout_queue_ms", "concealed_ms",
    "audio_dropped_frames", "drops", "remote",
)  # fmt: skip


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


def _address(address: HostPort) -> str | None:
    host, port, transport = address
    if not host:
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{port}/{_TRANSPORTS.get(transport, transport)}"
