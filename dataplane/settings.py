"""Reads what an operator set: flags, EARSHOT_* variables, earshot.toml.

One table, ``SETTINGS``, serves all three. Every refusal is a ``ConfigError``
that names where the value stands, what it is, and what would do instead.
"""

from __future__ import annotations

import argparse
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from dataplane.config import Backend, Config, ConfigError
from dataplane.setting_values import (
    BackendEntry,
    Parse,
    address_list,
    backend_commands,
    backend_paths,
    backend_tables,
    choice,
    cluster_keys,
    host_port,
    power_of_two,
    secret,
    text,
    whole_number,
)

DEFAULT_FILE = "earshot.toml"
# sockaddr_un.sun_path holds 108 bytes, the closing NUL among them.
MAX_SOCKET_PATH_BYTES = 107
KEY_RECIPE = "export EARSHOT_API_KEY=$(openssl rand -hex 32)"
# What container platforms set for a service that happens to be called
# "earshot" (Kubernetes, Docker links); it is not meant for us.
FOREIGN_VARIABLE = re.compile(r"EARSHOT_(SERVICE_.+|PORT|PORT_\d+_.+)$")


@dataclass(frozen=True)
class Setting:
    """One name an operator may set, wherever it stands."""

    name: str
    parse: Parse
    metavar: str
    help: str
    many: bool = False
    flag: bool = True

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "EARSHOT_" + self.name.upper()


SETTINGS = (
    Setting("http", host_port, "HOST:PORT", "HTTP side: API, talk page, admin (127.0.0.1:8080)"),
    Setting("udp_port", whole_number(0, 65535), "PORT", "the one public UDP port (3478)"),
    Setting(
        "advertise",
        address_list,
        "ADDR",
        "address for the clients; repeatable, preferred first (the machine's own)",
        many=True,
    ),
    Setting("relays", whole_number(1, 64), "N", "relay workers (2)"),
    Setting("transceivers", whole_number(1, 64), "M", "transceiver workers (2)"),
    Setting(
        "backend",
        backend_paths,
        "NAME=PATH",
        "a backend that listens on the Unix socket PATH; repeatable",
        many=True,
    ),
    Setting(
        "backend_command",
        backend_commands,
        "NAME=COMMAND",
        "a backend to start and restart; the socket's path is added as its last "
        "argument; repeatable",
        many=True,
    ),
    Setting("max_sessions", whole_number(1, 1 << 20), "N", "rows in the session table (4096)"),
    Setting(
        "flows_per_relay",
        power_of_two(64, 1 << 24),
        "N",
        "client addresses a relay remembers, a power of two (65536)",
    ),
    Setting("node_id", whole_number(0, 65535), "N", "this machine's number in a fleet (1)"),
    Setting("run_dir", text, "DIR", "where sockets and state live (chosen from the UDP port)"),
    Setting("log_format", choice("auto", "json", "pretty"), "FORMAT", "auto, json or pretty"),
    Setting(
        "log_level",
        choice("debug", "info", "warning", "error"),
        "LEVEL",
        "debug, info, warning or error (info)",
    ),
    # Secrets have no flag: everybody on the machine may read a command line.
    Setting("api_key", secret(16), "", "bearer key of the HTTP side", flag=False),
    Setting("cluster_keys", cluster_keys, "", "the fleet's ufrag keys", flag=False),
    Setting("max_wait_ms", whole_number(0, 1000), "MS", "longest wait for a missing packet (60)"),
    Setting(
        "playout_lead_ms", whole_number(0, 1000), "MS", "audio gathered before an utterance (20)"
    ),
    Setting("opus_complexity", whole_number(0, 10), "N", "0 cheapest, 10 best (5)"),
    Setting("opus_bitrate", whole_number(6000, 510000), "BPS", "downlink bits per second (32000)"),
)
BY_NAME = {setting.name: setting for setting in SETTINGS}
BACKEND_NAMES = ("backend", "backend_command")


class _Parser(argparse.ArgumentParser):
    """argparse, with refusals as ConfigError instead of an exit."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        hint = ""
        if unknown:
            options = [setting.option for setting in SETTINGS if setting.flag]
            hint = _did_you_mean(unknown[1], [*options, "--config"])
        raise ConfigError(f"command line: {message}{hint} ({self.prog} --help lists every flag)")


def build_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser for the flags of ``SETTINGS``; every value stays a string."""
    parser = _Parser(
        prog=prog,
        description=description,
        epilog="Every flag may also stand in earshot.toml (udp_port = 3478) or in the environment "
        "(EARSHOT_UDP_PORT=3478); a flag wins over the environment, the environment over the file. "
        "Beyond loopback, EARSHOT_API_KEY must hold the HTTP side's bearer key.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file (./{DEFAULT_FILE}, if any)")
    for setting in SETTINGS:
        if setting.flag:
            parser.add_argument(
                setting.option,
                metavar=setting.metavar,
                help=setting.help,
                action="append" if setting.many else "store",
                default=None,
            )
    return parser


def load_config(namespace: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """The configuration, from what ``build_parser`` parsed, the environment and
    the file.

    Raises ConfigError; reads no file but the TOML one.
    """
    flags = {
        setting.name: (setting.option, value)
        for setting in SETTINGS
        if setting.flag and (value := getattr(namespace, setting.name)) is not None
    }
    named = namespace.config or environ.get("EARSHOT_CONFIG") or ""
    layers = [_from_file(named), _from_environment(environ), flags]
    chosen: dict[str, tuple[str, Any]] = {}
    for layer in layers:
        if any(name in layer for name in BACKEND_NAMES):
            # A layer that names backends names all of them.
            for name in BACKEND_NAMES:
                chosen.pop(name, None)
        chosen.update(layer)
    values = {name: _parse(BY_NAME[name], where, raw) for name, (where, raw) in chosen.items()}
    return _complete(values, chosen, environ)


def default_run_dir(udp_port: int, environ: Mapping[str, str], uid: int) -> str:
    """The run directory of the node on this UDP port: the same at every start,
    so that a new supervisor finds what an old one left."""
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return f"{runtime}/earshot-{udp_port}"
    return f"/run/earshot-{udp_port}" if uid == 0 else f"/tmp/earshot-{uid}-{udp_port}"


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _parse(setting: Setting, where: str, raw: Any) -> Any:
    try:
        return setting.parse(raw)
    except ValueError as error:
        shown = "" if not setting.flag else f" {raw!r} cannot be used:"
        raise ConfigError(f"{where}:{shown} {error}") from None


def _from_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    known = {setting.variable: setting.name for setting in SETTINGS}
    found: dict[str, tuple[str, Any]] = {}
    for variable, value in environ.items():
        if not variable.startswith("EARSHOT_") or variable == "EARSHOT_CONFIG":
            continue
        if variable in known:
            found[known[variable]] = (variable, value)
        elif not FOREIGN_VARIABLE.match(variable):
            hint = _did_you_mean(variable, known) or "; unset it, or see docs/configuration.md"
            raise ConfigError(f"environment: {variable} is no setting of Earshot's{hint}")
    return found


def _from_file(named: str) -> dict[str, tuple[str, Any]]:
    path = Path(named or DEFAULT_FILE)
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if named:
            raise ConfigError(
                f"--config {named}: there is no such file; name one that exists, or leave it out"
            ) from None
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {error}") from None
    found: dict[str, tuple[str, Any]] = {}
    for key, value in tables.items():
        if key == "backend":
            found[key] = (f"{path}: backend", _backend_entries(path, value))
        elif key in BY_NAME and key not in BACKEND_NAMES:
            found[key] = (f"{path}: {key}", value)
        else:
            hint = _did_you_mean(key, [name for name in BY_NAME if name != "backend_command"])
            raise ConfigError(
                f"{path}: {key} is no setting of Earshot's{hint or '; remove it'}"
                " (docs/configuration.md lists all)"
            )
    return found


def _backend_entries(path: Path, value: Any) -> tuple[BackendEntry, ...]:
    try:
        return backend_tables(value)
    except ValueError as error:
        raise ConfigError(f"{path}: backend: {error}") from None


def _complete(
    values: dict[str, Any], chosen: Mapping[str, tuple[str, Any]], environ: Mapping[str, str]
) -> Config:
    """What depends on several settings: the run directory, the backends'
    sockets, and the key that a public HTTP side needs."""
    entries: Sequence[BackendEntry] = [
        entry for name in BACKEND_NAMES for entry in values.pop(name, ())
    ]
    config = Config(**values)
    if not config.run_dir and config.udp_port == 0:
        raise ConfigError(
            "udp_port 0 (any free port) needs a run directory of its own, so that the next start"
            " finds this node: add --run-dir DIR"
        )
    run_dir = config.run_dir or default_run_dir(config.udp_port, environ, os.getuid())
    config = replace(config, run_dir=os.path.abspath(run_dir))
    config = replace(config, backends=_merge_backends(entries, config.run_dir))
    if not is_loopback(config.http[0]) and not config.api_key:
        where = chosen["http"][0]
        raise ConfigError(
            f"{where}: {config.http[0]} is reachable from other machines, and EARSHOT_API_KEY is"
            f" not set, so anybody could place calls. Make a key with\n  {KEY_RECIPE}\n"
            "and start again; clients send it as 'Authorization: Bearer …'."
            " Or listen on 127.0.0.1."
        )
    return config


def _merge_backends(entries: Sequence[BackendEntry], run_dir: str) -> tuple[Backend, ...]:
    """``--backend`` and ``--backend-command`` of one name are one backend."""
    merged: dict[str, Backend] = {}
    for entry in entries:
        known = merged.get(entry.name, Backend(entry.name, ""))
        if (entry.path and known.path) or (entry.command and known.command):
            raise ConfigError(f"backend {entry.name}: named twice; give each backend its own name")
        merged[entry.name] = Backend(
            entry.name, entry.path or known.path, entry.command or known.command
        )
    backends = tuple(
        replace(backend, path=os.path.abspath(backend.path or f"{run_dir}/{backend.name}.sock"))
        for backend in merged.values()
    )
    for backend in backends:
        if len(os.fsencode(backend.path)) > MAX_SOCKET_PATH_BYTES:
            raise ConfigError(
                f"backend {backend.name}: the socket's path {backend.path} is longer than"
                f" {MAX_SOCKET_PATH_BYTES} bytes, which no Unix socket can have; choose a shorter"
                " one (--run-dir)"
            )
    return backends
