"""Which web pages may use this edge. Pure.

The danger is a developer's machine: the HTTP side listens on loopback and asks
for no key, and any page of the Internet runs in a browser on that machine. So,
while no key is set:

- a request whose Origin is not this server's own or a loopback one is refused,
  not merely left without CORS headers: a form post needs no preflight, and its
  sender does not need to see the answer to fill the table;
- "null" is refused: a sandboxed frame of any page has it;
- a request whose Host is not a loopback name is refused: an attacker's name
  can be made to resolve to 127.0.0.1 (DNS rebinding), and is then same-origin.

With a key every origin may call: the key travels in a header that no browser
adds by itself, so a foreign page gains nothing that curl has not.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_origin_allowed(origin: str, host: str | None, *, has_key: bool) -> bool:
    """Whether a page of `origin` may call a server reached as `host` (the Host header)."""
    if has_key:
        return True
    try:
        parts = urlsplit(origin)
        name, authority = parts.hostname, parts.netloc
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not name:
        return False
    # The scheme is not compared: a proxy in front may speak TLS.
    same = host is not None and authority.lower() == host.lower()
    return same or is_loopback_name(name)


def is_host_allowed(host: str | None, *, has_key: bool) -> bool:
    """Whether a request for `host` is meant for a server that only loopback reaches.

    No Host at all (HTTP/1.0) comes from no browser.
    """
    if has_key or host is None:
        return True
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name is not None and is_loopback_name(name)


def is_loopback_name(name: str) -> bool:
    """localhost and below (RFC 6761 section 6.3), and loopback addresses."""
    name = name.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return is_loopback_address(name)


def is_loopback_address(text: str) -> bool:
    """A numeric address of this machine's loopback, mapped IPv4 included."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback if mapped is None else bool(mapped.is_loopback)
