"""What a node's shared-memory segments are called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SegmentNames:
    """Names of one node's segments; ``instance`` tells nodes on one machine apart."""

    instance: str

    @property
    def sessions(self) -> str:
        return self._name("sessions")

    @property
    def status(self) -> str:
        return self._name("status")

    @property
    def routes(self) -> str:
        return self._name("routes")

    @property
    def workers(self) -> str:
        return self._name("workers")

    def flows(self, relay: int) -> str:
        """The flow table of the relay of that index."""
        return self._name(f"flows.{relay}")

    def all(self, relays: int) -> list[str]:
        """Every segment of a node with that many relays."""
        tables = [self.sessions, self.status, self.routes, self.workers]
        return tables + [self.flows(i) for i in range(relays)]

    def _name(self, table: str) -> str:
        return f"/earshot.{self.instance}.{table}"
