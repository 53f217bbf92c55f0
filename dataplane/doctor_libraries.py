"""The doctor's checks of what Earshot stands on: kernel, codec, cryptography."""

from __future__ import annotations

import importlib.metadata

from dataplane.config import Config
from dataplane.finding import Check, Finding, failure, ok, warning

REINSTALL = "pip install --force-reinstall earshot"
SLOW_OPUS = ("1.1", "1.2", "1.3", "1.4")


def c_kernel(_config: Config) -> Finding:
    """The compiled extension, and that it is of this source's layout."""
    try:
        from dataplane.kernel import binding
    except ImportError as error:
        return failure(
            "C kernel",
            f"cannot be loaded: {error}",
            f"build it: python3 dataplane/kernel/build.py (needs gcc), or {REINSTALL}",
        )
    return ok("C kernel", f"layout version {binding.LAYOUT_VERSION}")


def opus(_config: Config) -> Finding:
    from dataplane.proto.opus import OpusUnavailableError, find_libopus

    try:
        library = find_libopus()
    except OpusUnavailableError as error:
        return failure("Opus", str(error), "pip install 'av>=18.1', or apt install libopus0")
    found = f"{library.version} from {library.source}: {library.path}"
    if any(f"libopus {slow}" in library.version for slow in SLOW_OPUS):
        return warning("Opus", found, "pip install 'av>=18.1' brings a newer and faster one")
    return ok("Opus", found)


def openssl(_config: Config) -> Finding:
    """DTLS 1.2 with the SRTP profiles of RFC 5764 and RFC 7714."""
    from OpenSSL import SSL

    release = SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode("ascii", "replace")
    found = f"{release}, pyOpenSSL {importlib.metadata.version('pyOpenSSL')}"
    context = SSL.Context(SSL.DTLS_METHOD)
    missing = []
    for profile in ("SRTP_AEAD_AES_128_GCM", "SRTP_AES128_CM_SHA1_80"):
        try:
            context.set_tlsext_use_srtp(profile.encode())
        except SSL.Error:
            missing.append(profile)
    if missing:
        return failure(
            "OpenSSL",
            f"{found}: no {' and no '.join(missing)}",
            "pip install --force-reinstall cryptography pyOpenSSL",
        )
    return ok("OpenSSL", f"{found}, DTLS-SRTP with AES-128-GCM and AES-128-CM")


def libsrtp(_config: Config) -> Finding:
    from pylibsrtp import Policy, Session

    found = f"pylibsrtp {importlib.metadata.version('pylibsrtp')}"
    for profile, key_bytes in (
        (Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 28),
        (Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 30),
    ):
        policy = Policy(
            key=bytes(key_bytes), ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile
        )
        packet = b"\x80\x00" + bytes(10) + bytes(20)
        if Session(policy).protect(packet) == packet:
            return failure("libsrtp", f"{found} does not encrypt", "pip install -U pylibsrtp")
    return ok("libsrtp", f"{found}, protects with both profiles")


CHECKS: tuple[Check, ...] = (c_kernel, opus, openssl, libsrtp)
