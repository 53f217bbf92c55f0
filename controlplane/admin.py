"""The admin API: processes, calls and routes, read from shared memory.

Reading costs the calls nothing. What is not known yet is null.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp import web

from controlplane.call_view import view_call
from controlplane.calls import Calls
from controlplane.faces.realtime import unknown_call
from controlplane.placement import HEARTBEAT_LIMIT_NS
from controlplane.tokens import is_call_id
from controlplane.worker_view import WorkerView, is_running
from dataplane.config import Config
from dataplane.launch import version
from dataplane.proto.address import Address
from dataplane.shm.enums import Counter, WorkerKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.routes import RouteTable
from dataplane.shm.workers import COUNTER_NAMES, WorkerInfo, WorkerTable

# Calls turned into JSON before the other requests get their turn: some 5 ms.
_CALLS_AT_ONCE = 100
# layout.h numbers the counters of each kind of process in a range of its own.
_COUNTERS_OF = {
    WorkerKind.RELAY: range(32),
    WorkerKind.TRANSCEIVER: range(32, 80),
    WorkerKind.CONTROL_PLANE: range(80, 96),
}


class AdminApi:
    """GET /healthz and /admin/v1/…"""

    def __init__(
        self,
        config: Config,
        calls: Calls,
        workers: WorkerTable,
        view: WorkerView,
        routes: RouteTable,
        flows: Sequence[FlowTable],
    ) -> None:
        self._config = config
        self._calls = calls
        self._workers = workers
        self._view = view
        self._routes = routes
        self._flows = flows
        self._started_ns = time.monotonic_ns()

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/healthz", self._health),
            web.get("/admin/v1/workers", self._list_workers),
            web.get("/admin/v1/calls", self._list_calls),
            web.get("/admin/v1/calls/{call_id}", self._one_call),
            web.get("/admin/v1/routes", self._list_routes),
        ]

    async def _health(self, request: web.Request) -> web.Response:
        """200 when a call that is offered now can be served, else 503."""
        now_ns = time.monotonic_ns()
        relays = self._count_live(WorkerKind.RELAY, self._config.relays, now_ns)
        transceivers = self._count_live(WorkerKind.TRANSCEIVER, self._config.transceivers, now_ns)
        ok = relays > 0 and transceivers > 0
        body = {
            "ok": ok,
            "version": version(),
            "uptime_s": round((now_ns - self._started_ns) / 1e9, 3),
            "relays": {"live": relays, "configured": self._config.relays},
            "transceivers": {"live": transceivers, "configured": self._config.transceivers},
            "backends": len(self._config.backends),
            "calls": {
                "live": len(self._calls),
                "ended": self._calls.remembered,
                "capacity": self._calls.capacity,
            },
        }
        return _json(body, status=200 if ok else 503)

    def _count_live(self, kind: WorkerKind, configured: int, now_ns: int) -> int:
        infos = (self._workers.find(kind, index) for index in range(configured))
        return sum(1 for info in infos if info is not None and _is_live(info, now_ns))

    async def _list_workers(self, request: web.Request) -> web.Response:
        now_ns = time.monotonic_ns()
        return _json({"workers": [self._view_worker(i, now_ns) for i in self._workers.all()]})

    def _view_worker(self, info: WorkerInfo, now_ns: int) -> dict[str, Any]:
        view: dict[str, Any] = {
            "kind": info.kind.name.lower(),
            "index": info.index,
            "pid": info.pid,
            "incarnation": info.incarnation,
            "live": _is_live(info, now_ns),
            "uptime_s": round(max(0, time.time_ns() - info.started_unix_ns) / 1e9, 3),
            "heartbeat_age_s": round((now_ns - info.heartbeat_ns) / 1e9, 3)
            if info.heartbeat_ns
            else None,
            "load": info.load,
            "cpu": round(self._view.cpu_share(info), 4),
            "cpu_s": round(info.cpu_ns / 1e9, 3),
            "counters": _own_counters(info),
        }
        if info.kind is WorkerKind.RELAY and info.index < len(self._flows):
            view["flows"] = self._flows[info.index].count_live(0)
        return view

    async def _list_calls(self, request: web.Request) -> web.Response:
        """The live ones, then those that ended within the last minute."""
        now_ns = time.monotonic_ns()
        views = []
        for i, call in enumerate(self._calls):
            if i % _CALLS_AT_ONCE == _CALLS_AT_ONCE - 1:
                await asyncio.sleep(0)
            views.append(view_call(call, self._calls.status_of(call), self._config, now_ns))
        return _json({"calls": views})

    async def _one_call(self, request: web.Request) -> web.Response:
        call_id = request.match_info["call_id"]
        call = self._calls.get(call_id) if is_call_id(call_id) else None
        if call is None:
            raise unknown_call()
        status = self._calls.status_of(call)
        return _json(view_call(call, status, self._config, time.monotonic_ns()))

    async def _list_routes(self, request: web.Request) -> web.Response:
        routes = [
            {
                "node_id": route.node_id,
                "worker": route.worker,
                "address": str(Address(route.ip, route.port, 1)),
            }
            for route in sorted(self._routes.all(), key=lambda r: (r.node_id, r.worker))
        ]
        return _json({"routes": routes})


def _is_live(info: WorkerInfo, now_ns: int) -> bool:
    return is_running(info.pid) and now_ns - info.heartbeat_ns <= HEARTBEAT_LIMIT_NS


def _own_counters(info: WorkerInfo) -> dict[str, int]:
    own = _COUNTERS_OF.get(info.kind, range(0))
    return {
        COUNTER_NAMES[counter]: info.counters[COUNTER_NAMES[counter]]
        for counter in Counter
        if counter in own
    }


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
