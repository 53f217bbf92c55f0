"""What an operator may set, validated once.

The same names serve as command-line flags (``--udp-port``), TOML keys
(``udp_port`` in ``earshot.toml``) and environment variables
(``EARSHOT_UDP_PORT``); a flag wins over the environment, the environment over
the file, the file over the default. ``dataplane.settings`` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass, field


class ConfigError(ValueError):
    """A setting cannot be used. The message names it, its source and the cure."""


@dataclass(frozen=True)
class Backend:
    """A program that speaks PCM: its public name and the socket it listens on."""

    name: str
    path: str
    command: tuple[str, ...] = ()
    """Started and restarted by the supervisor when not empty; the socket's
    path is its last argument."""


@dataclass(frozen=True)
class Config:
    """One node's configuration."""

    http: tuple[str, int] = ("127.0.0.1", 8080)
    """Address and port of the control plane's HTTP side; port 0 lets the
    kernel choose (tests)."""
    udp_port: int = 3478
    """The one public UDP port; 0 lets the kernel choose (tests)."""
    advertise: tuple[str, ...] = ()
    """Addresses for the answer's candidates, in order of preference. Empty:
    the machine's own, loopback included when HTTP listens on loopback. The
    supervisor fills it in, so the workers never see it empty."""
    relays: int = 2
    """Relay workers, 1 to 64."""
    transceivers: int = 2
    """Transceiver workers, 1 to 64."""
    backends: tuple[Backend, ...] = ()
    """A call names one of them; their order numbers them in shared memory."""
    max_sessions: int = 4096
    """Rows in the session table: calls at once, and recently ended ones."""
    flows_per_relay: int = 65536
    """Rows in each relay's flow table, a power of two, at least 64."""
    node_id: int = 1
    """This machine's number in a fleet, 0 to 65535; part of every ufrag."""
    run_dir: str = ""
    """Where sockets and node.json live. Empty: chosen from the UDP port."""
    log_format: str = "auto"
    """``json``, ``pretty`` or ``auto`` (pretty on a terminal)."""
    log_level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    api_key: str = field(default="", repr=False)
    """Bearer key of the HTTP side. Required beyond loopback."""
    cluster_keys: str = field(default="", repr=False)
    """``0:hex,1:hex``, the first is the active one. Empty: a fresh random key
    at every start that adopts nothing."""
    max_wait_ms: int = 60
    """Longest wait of the uplink for a missing packet."""
    playout_lead_ms: int = 20
    """Audio gathered before an utterance starts, against a backend's jitter."""
    opus_complexity: int = 5
    """0 (cheapest) to 10 (best)."""
    opus_bitrate: int = 32000
    """Bits per second of the downlink encoder."""
