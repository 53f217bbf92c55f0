"""The lite side of ICE for one session (RFC 8445 section 2.5), with consent (RFC 7675).

We answer checks and send none, so all that we know of paths is what authenticated checks tell:

* verified: source addresses of valid checks. DTLS and SRTP are taken from these alone.
* selected: where our media goes. A check with USE-CANDIDATE moves it at once; any other check
  moves it only while nothing is nominated, or when the selected address has been silent for
  longer than a controlling agent that still uses it would be.

Why that is the right reading of what controlling agents do towards a lite peer:

* libwebrtc sets USE-CANDIDATE on every check of the pair that it has selected, and on no other:
  one every 2.5 s, so a re-nomination (Wi-Fi to cellular) shows within one round trip, and checks
  that keep a backup pair alive never carry it.
* aioice nominates once (RFC 8445 section 8.1.1); its consent checks, each 4 to 6 s, are bare.
* Firefox checks bare as well and may nominate late or, of a single pair, not at all. After a NAT
  rebinding its bare checks from the new address are all that we get: hence the silence rule.
* A retransmitted or reordered request that already did its work must not move us back: the
  transaction id of the last nomination from each address is remembered.
* A request recorded on the way and sent again from elsewhere proves nothing: a transaction id
  that came from one address is refused from any other (RFC 8489 section 6: a client uses a new
  one for each transaction).

Roles: a lite agent is controlled. A peer that claims to be controlled too is told 487 and changes
(RFC 8445 section 7.3.1.1). Not implemented: checks of our own, other components, ice2 pacing.
"""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.stun import (
    BindingRequest,
    encode_error,
    encode_success,
    parse_binding_request,
    verify_integrity,
)

# A phone on two networks with IPv4 and IPv6 has four addresses at a time.
MAX_VERIFIED = 8

CONSENT_NS = 30_000_000_000  # RFC 7675 section 5.1

# Two minutes of libwebrtc's checks on a stable pair; a burst of them while it still looks for one.
MAX_TRANSACTIONS = 64

# One consent check (4..6 s, RFC 7675 section 5.1) or two of libwebrtc's (2.5 s) went missing.
SELECTED_SILENCE_NS = 7_500_000_000

_BAD_USERNAME = "drop_session_stun_bad_username"
_REPLAY = "drop_session_stun_replay"


@dataclass(slots=True)
class _Path:
    last_check_ns: int
    nomination: bytes = b""  # transaction id of the last nominating request


class IceLite:
    """handle_request is the only input; selected, verified and consent_expires_ns the output."""

    def __init__(self, local_ufrag: str, ice_pwd: str, remote_ufrag: str, now_ns: int) -> None:
        self.consent_expires_ns = now_ns + CONSENT_NS
        self.selected: Address | None = None
        self._local_ufrag = local_ufrag
        self._ice_pwd = ice_pwd
        self._remote_ufrag = remote_ufrag
        self._nominated = False
        self._paths: dict[Address, _Path] = {}  # least recently checked first
        self._transactions: dict[bytes, Address] = {}  # oldest first

    @property
    def verified(self) -> frozenset[Address]:
        """At most MAX_VERIFIED addresses; for a single test use is_verified."""
        return frozenset(self._paths)

    def is_verified(self, addr: Address) -> bool:
        return addr in self._paths

    def handle_request(self, datagram: bytes, addr: Address, now_ns: int) -> bytes:
        """Take a check that came from addr and return the answer to send there.

        Raises BadPacket drop_session_stun_malformed, _bad_username, _bad_integrity or _replay;
        then nothing has changed and nothing is to be sent.
        """
        request = parse_binding_request(datagram)
        if request.local_ufrag != self._local_ufrag or request.remote_ufrag != self._remote_ufrag:
            raise BadPacket(_BAD_USERNAME)
        verify_integrity(datagram, request, self._ice_pwd)
        if self._transactions.get(request.transaction_id, addr) != addr:
            raise BadPacket(_REPLAY)
        if request.unknown_required:
            return encode_error(request, 420, "Unknown Attribute", self._ice_pwd)
        if request.ice_controlled is not None:
            return encode_error(request, 487, "Role Conflict", self._ice_pwd)
        self._note_valid_check(request, addr, now_ns)
        return encode_success(request, addr, self._ice_pwd)

    def _note_valid_check(self, request: BindingRequest, addr: Address, now_ns: int) -> None:
        self._transactions[request.transaction_id] = addr
        if len(self._transactions) > MAX_TRANSACTIONS:
            del self._transactions[next(iter(self._transactions))]
        path = self._paths.pop(addr, None) or _Path(now_ns)
        path.last_check_ns = now_ns
        self._paths[addr] = path
        if request.use_candidate:
            if request.transaction_id != path.nomination:
                path.nomination = request.transaction_id
                self.selected = addr
                self._nominated = True
        elif not self._nominated or self._selected_is_silent(now_ns):
            self.selected = addr
        self.consent_expires_ns = now_ns + CONSENT_NS
        self._forget_beyond_the_limit()

    def _selected_is_silent(self, now_ns: int) -> bool:
        path = self._paths.get(self.selected) if self.selected is not None else None
        return path is None or now_ns - path.last_check_ns > SELECTED_SILENCE_NS

    def _forget_beyond_the_limit(self) -> None:
        if len(self._paths) > MAX_VERIFIED:
            oldest = next(addr for addr in self._paths if addr != self.selected)
            del self._paths[oldest]


def refuse(datagram: bytes, local_ufrag: str, ice_pwd: str) -> bytes:
    """The authenticated 403 that revokes consent (RFC 7675 section 5.2), for a call that is over.

    Needs no session. The remote ufrag is not looked at: who has the password knew it.
    Raises BadPacket as IceLite.handle_request does.
    """
    request = parse_binding_request(datagram)
    if request.local_ufrag != local_ufrag:
        raise BadPacket(_BAD_USERNAME)
    verify_integrity(datagram, request, ice_pwd)
    return encode_error(request, 403, "Forbidden", ice_pwd)
