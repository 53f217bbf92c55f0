"""What one of the doctor's checks found, and what would cure it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dataplane.config import Config


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    status: Literal["ok", "warning", "failure"]
    found: str
    cure: str = ""
    """What to change: the exact line, package or flag. Empty when all is well."""


Check = Callable[[Config], Finding]


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, cure: str) -> Finding:
    return Finding(check, "warning", found, cure)


def failure(check: str, found: str, cure: str) -> Finding:
    return Finding(check, "failure", found, cure)
