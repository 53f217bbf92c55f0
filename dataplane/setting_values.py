"""Reads the single values of ``dataplane.settings``.

Each parser takes what a flag or variable (text) or TOML (text, number, list)
holds and raises ValueError with the cure: what would be a usable value.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Parse = Callable[[Any], Any]

BACKEND_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLUSTER_KEY = re.compile(r"(\d{1,2}):((?:[0-9a-fA-F]{2}){16,64})")


@dataclass(frozen=True)
class BackendEntry:
    """What one flag or TOML table says of a backend; the rest is empty."""

    name: str
    path: str = ""
    command: tuple[str, ...] = ()


def whole_number(low: int, high: int) -> Parse:
    def parse(raw: Any) -> int:
        cure = f"give a whole number from {low} to {high}"
        if isinstance(raw, bool) or not isinstance(raw, int | str):
            raise ValueError(cure)
        try:
            value = int(raw)
        except ValueError:
            raise ValueError(cure) from None
        if not low <= value <= high:
            raise ValueError(cure)
        return value

    return parse


def power_of_two(low: int, high: int) -> Parse:
    number = whole_number(low, high)

    def parse(raw: Any) -> int:
        value: int = number(raw)
        if value & (value - 1):
            below = 1 << (value.bit_length() - 1)
            raise ValueError(f"give a power of two, such as {below} or {below * 2}")
        return value

    return parse


def choice(*allowed: str) -> Parse:
    def parse(raw: Any) -> str:
        if raw not in allowed:
            raise ValueError(f"give one of {', '.join(allowed)}")
        return str(raw)

    return parse


def text(raw: Any) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError("give a text that is not empty")
    return raw


def secret(shortest: int) -> Parse:
    """Printable ASCII, because it travels in an HTTP header."""

    def parse(raw: Any) -> str:
        if not isinstance(raw, str) or len(raw) < shortest or not re.fullmatch(r"[!-~]+", raw):
            raise ValueError(
                f"must be at least {shortest} printable characters without spaces;"
                " 'openssl rand -hex 32' makes a good one"
            )
        return raw

    return parse


def cluster_keys(raw: Any) -> str:
    parts = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else []
    matches = [CLUSTER_KEY.fullmatch(part) for part in parts]
    ids = [int(match[1]) for match in matches if match]
    if len(ids) != len(parts) or not ids or max(ids) > 15 or len(set(ids)) != len(ids):
        raise ValueError(
            "must be ID:HEX, several joined by commas, the active one first; ID is 0 to 15 and"
            ' HEX at least 32 hex digits: "0:$(openssl rand -hex 32)"'
        )
    return ",".join(parts)


def host_port(raw: Any) -> tuple[str, int]:
    """``127.0.0.1:8080``, ``[::1]:8080``, ``localhost:8080``."""
    cure = "give ADDRESS:PORT, such as 127.0.0.1:8080, 0.0.0.0:8080 or [::1]:8080"
    if not isinstance(raw, str):
        raise ValueError(cure)
    host, _, port = raw.rpartition(":")
    if host == "localhost":
        host = "127.0.0.1"
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
        number: int = whole_number(0, 65535)(port)
    except ValueError:
        raise ValueError(cure) from None
    if (address.version == 6) != bracketed:
        raise ValueError(cure)
    return str(address), number


def address_list(raw: Any) -> tuple[str, ...]:
    """IP literals. Names are refused: a browser would have to resolve them, and
    Chromium does not for ICE."""
    found = []
    for item in _items(raw, ","):
        try:
            address = ipaddress.ip_address(item)
        except ValueError:
            raise ValueError(f"{item!r} is no IP address; give one that clients reach") from None
        if address.is_unspecified or address.is_multicast:
            raise ValueError(f"{item} is no address that a client could send to")
        found.append(str(address))
    return tuple(dict.fromkeys(found))


def backend_paths(raw: Any) -> tuple[BackendEntry, ...]:
    if isinstance(raw, tuple):  # TOML tables, read already
        return raw
    entries = []
    for item in _items(raw, ","):
        name, path = _named(item, "NAME=PATH, such as echo=/run/echo.sock")
        entries.append(BackendEntry(name, path=path))
    return tuple(entries)


def backend_commands(raw: Any) -> tuple[BackendEntry, ...]:
    """One a line in the environment, because commands may hold commas."""
    entries = []
    for item in _items(raw, "\n"):
        name, command = _named(item, "NAME=COMMAND, such as echo='python3 examples/echo.py'")
        entries.append(BackendEntry(name, command=_words(command)))
    return tuple(entries)


def backend_tables(raw: Any) -> tuple[BackendEntry, ...]:
    """TOML ``[[backend]]``: name, and path or command or both."""
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        raise ValueError("write each backend as a [[backend]] table with name, path, command")
    entries = []
    for table in raw:
        for key in table:
            if key not in ("name", "path", "command"):
                raise ValueError(f"{key} is no key of a backend; use name, path, command")
        name, path = table.get("name", ""), table.get("path", "")
        command = table.get("command", ())
        if not isinstance(name, str) or not BACKEND_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name; use letters, digits, '.', '_', '-'")
        if not isinstance(path, str):
            raise ValueError(f"{name}: path must be text")
        if isinstance(command, str) and command:
            command = _words(command)
        if not all(isinstance(word, str) for word in command):
            raise ValueError(f"{name}: command must be text or a list of texts")
        if not path and not command:
            raise ValueError(f"{name}: give it a path, or a command that Earshot starts")
        entries.append(BackendEntry(name, path, tuple(command)))
    return tuple(entries)


def _items(raw: Any, separator: str) -> list[str]:
    """A repeated flag or a TOML list holds single items, a text several."""
    items = raw.split(separator) if isinstance(raw, str) else raw
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError("give a list of texts")
    return [item.strip() for item in items if item.strip()]


def _named(item: str, cure: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not value or not BACKEND_NAME.fullmatch(name):
        raise ValueError(f"write {cure}; a name holds letters, digits, '.', '_', '-'")
    return name, value


def _words(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise ValueError(f"the command {command!r} cannot be read: {error}") from None
    if not words:
        raise ValueError("the command is empty")
    return words
