from __future__ import annotations

import itertools
from typing import Any

import pytest
from aioice import stun as aioice_stun

from dataplane.proto.address import Address
from dataplane.proto.errors import BadPacket
from dataplane.proto.ice_lite import (
    CONSENT_NS,
    MAX_VERIFIED,
    SELECTED_SILENCE_NS,
    IceLite,
    refuse,
)

PASSWORD = "ThePasswordOfTheSession!"
SECOND = 1_000_000_000
T0 = 5_000 * SECOND
WIFI = Address.from_text("192.0.2.1", 1000)
CELL = Address.from_text("2001:db8::7", 2000)

_transaction = itertools.count()


def check(username: str = "local:remote", password: str = PASSWORD, **attributes: Any) -> bytes:
    """A check as aioice sends it; keywords add attributes (USE_CANDIDATE=None)."""
    message = aioice_stun.Message(
        aioice_stun.Method.BINDING,
        aioice_stun.Class.REQUEST,
        transaction_id=next(_transaction).to_bytes(12, "big"),
    )
    message.attributes["USERNAME"] = username
    message.attributes["PRIORITY"] = 1
    if "ICE_CONTROLLED" not in attributes:
        message.attributes["ICE-CONTROLLING"] = 2**64 - 1
    for name, value in attributes.items():
        message.attributes[name.replace("_", "-")] = value
    message.add_message_integrity(password.encode())
    return bytes(message)


def nominate() -> bytes:
    return check(USE_CANDIDATE=None)


def fresh() -> IceLite:
    return IceLite("local", PASSWORD, "remote", T0)


def test_every_valid_check_is_answered() -> None:
    ice = fresh()
    for datagram in (check(), nominate()):
        answer = aioice_stun.parse_message(ice.handle_request(datagram, CELL, T0))
        assert answer.message_class == aioice_stun.Class.RESPONSE
        assert answer.check_message_integrity(PASSWORD.encode())
        assert answer.attributes["XOR-MAPPED-ADDRESS"] == ("2001:db8::7", 2000)
        assert answer.transaction_id == aioice_stun.parse_message(datagram).transaction_id
    assert ice.verified == {CELL}
    assert ice.is_verified(CELL)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "drop_session_stun_malformed"),
        (check(password="another"), "drop_session_stun_bad_integrity"),
        (check(username="other:remote"), "drop_session_stun_bad_username"),
        (check(username="local:other"), "drop_session_stun_bad_username"),
        (check(username="remote:local"), "drop_session_stun_bad_username"),
        (check(username="local:remote:"), "drop_session_stun_bad_username"),
    ],
)
def test_a_bad_check_changes_nothing(datagram: bytes, reason: str) -> None:
    ice = fresh()
    ice.handle_request(nominate(), WIFI, T0)
    with pytest.raises(BadPacket) as caught:
        ice.handle_request(datagram, CELL, T0 + SECOND)
    assert caught.value.reason == reason
    assert ice.verified == {WIFI}
    assert ice.selected == WIFI
    assert ice.consent_expires_ns == T0 + CONSENT_NS


def test_role_conflict_and_unknown_attribute_are_told_and_change_nothing() -> None:
    ice = fresh()
    answer = ice.handle_request(check(ICE_CONTROLLED=7, USE_CANDIDATE=None), WIFI, T0 + SECOND)
    assert aioice_stun.parse_message(answer).attributes["ERROR-CODE"] == (487, "Role Conflict")
    answer = ice.handle_request(check(DATA=b"?"), WIFI, T0 + SECOND)
    assert aioice_stun.parse_message(answer).attributes["ERROR-CODE"][0] == 420
    assert ice.verified == frozenset()
    assert ice.selected is None
    assert ice.consent_expires_ns == T0 + CONSENT_NS


def test_before_nomination_the_latest_check_is_selected() -> None:
    ice = fresh()
    assert ice.selected is None
    for addr in (WIFI, CELL, WIFI):
        ice.handle_request(check(), addr, T0)
        assert ice.selected == addr


def test_libwebrtc_renominates() -> None:
    """It marks every check of its selected pair, and none of a backup pair."""
    ice = fresh()
    now = T0
    ice.handle_request(check(), CELL, now)
    for _ in range(4):
        now += 2_500_000_000
        ice.handle_request(nominate(), WIFI, now)
        ice.handle_request(check(), CELL, now + 1)
        assert ice.selected == WIFI
    ice.handle_request(nominate(), CELL, now + 2)
    assert ice.selected == CELL
    ice.handle_request(check(), WIFI, now + 3)
    assert ice.selected == CELL


def test_a_retransmitted_nomination_does_not_move_back() -> None:
    ice = fresh()
    first = nominate()
    ice.handle_request(first, WIFI, T0)
    ice.handle_request(nominate(), CELL, T0 + 1)
    ice.handle_request(first, WIFI, T0 + 2)
    assert ice.selected == CELL
    ice.handle_request(nominate(), WIFI, T0 + 3)
    assert ice.selected == WIFI


def test_a_check_sent_again_from_elsewhere_proves_nothing() -> None:
    ice = IceLite("local", PASSWORD, "remote", T0)
    recorded = [nominate() for _ in range(3)]
    for datagram in recorded:
        ice.handle_request(datagram, WIFI, T0)
    for datagram in recorded:
        with pytest.raises(BadPacket, match="drop_session_stun_replay"):
            ice.handle_request(datagram, CELL, T0 + 20 * SECOND)
    assert ice.selected == WIFI
    assert not ice.is_verified(CELL)
    assert ice.consent_expires_ns == T0 + CONSENT_NS
    ice.handle_request(recorded[-1], WIFI, T0 + SECOND)  # its own retransmission is answered


def test_rebinding_of_an_agent_that_nominates_once() -> None:
    """aioice and Firefox send bare consent checks; after a NAT rebinding from a new address."""
    ice = fresh()
    ice.handle_request(nominate(), WIFI, T0)
    ice.handle_request(check(), CELL, T0 + SELECTED_SILENCE_NS)
    assert ice.selected == WIFI
    ice.handle_request(check(), CELL, T0 + SELECTED_SILENCE_NS + 1)
    assert ice.selected == CELL
    ice.handle_request(check(), WIFI, T0 + SELECTED_SILENCE_NS + 2)
    assert ice.selected == CELL


def test_consent() -> None:
    """RFC 7675 section 5.1: 30 s after the last valid check."""
    ice = fresh()
    assert ice.consent_expires_ns == T0 + 30 * SECOND
    ice.handle_request(check(), WIFI, T0 + 20 * SECOND)
    assert ice.consent_expires_ns == T0 + 50 * SECOND


def test_verified_addresses_are_bounded_and_the_selected_one_stays() -> None:
    ice = fresh()
    ice.handle_request(nominate(), WIFI, T0)
    others = [Address.from_text("192.0.2.9", 1 + i) for i in range(3 * MAX_VERIFIED)]
    for i, addr in enumerate(others):
        ice.handle_request(check(), addr, T0 + i)
        assert len(ice.verified) <= MAX_VERIFIED
        assert ice.is_verified(addr)
    assert ice.selected == WIFI
    assert ice.verified == {WIFI, *others[-MAX_VERIFIED + 1 :]}


def test_least_recently_checked_goes_first() -> None:
    ice = fresh()
    addresses = [Address.from_text("192.0.2.9", 1 + i) for i in range(MAX_VERIFIED)]
    for addr in addresses:
        ice.handle_request(check(), addr, T0)
    ice.handle_request(nominate(), addresses[-1], T0)
    ice.handle_request(check(), addresses[0], T0)
    ice.handle_request(check(), CELL, T0)
    assert ice.is_verified(addresses[0])
    assert not ice.is_verified(addresses[1])


def test_refuse() -> None:
    """RFC 7675 section 5.2, stateless."""
    answer = aioice_stun.parse_message(refuse(check(), "local", PASSWORD))
    assert answer.attributes["ERROR-CODE"] == (403, "Forbidden")
    assert answer.check_message_integrity(PASSWORD.encode())
    for datagram, reason in (
        (b"x", "drop_session_stun_malformed"),
        (check(username="other:remote"), "drop_session_stun_bad_username"),
        (check(password="another"), "drop_session_stun_bad_integrity"),
    ):
        with pytest.raises(BadPacket) as caught:
            refuse(datagram, "local", PASSWORD)
        assert caught.value.reason == reason
