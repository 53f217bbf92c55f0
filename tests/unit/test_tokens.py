"""Call ids and the bearer key."""

from __future__ import annotations

import pytest

from controlplane.tokens import bearer_token, is_authorized, is_call_id, new_call_id


def test_call_ids() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(is_call_id(call_id) and len(call_id) < 40 for call_id in ids)


@pytest.mark.parametrize("text", ["", "rtc_", "rtc_" + "g" * 32, "rtc_" + "a" * 33, "rtc_x/../y"])
def test_not_call_ids(text: str) -> None:
    assert not is_call_id(text)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (None, None),
        ("", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("Basic abc", None),
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
    ],
)
def test_bearer_token(header: str | None, token: str | None) -> None:
    assert bearer_token(header) == token


@pytest.mark.parametrize(
    ("header", "key", "allowed"),
    [
        (None, "", True),
        ("Bearer anything", "", True),
        (None, "secret", False),
        ("Bearer secret", "secret", True),
        ("Bearer Secret", "secret", False),
        ("Bearer secre", "secret", False),
        ("Bearer secrett", "secret", False),
        ("Basic secret", "secret", False),
        ("Bearer \udcff", "secret", False),
        ("Bearer schlüssel", "schlüssel", True),
    ],
)
def test_is_authorized(header: str | None, key: str, allowed: bool) -> None:
    assert is_authorized(header, key) is allowed
