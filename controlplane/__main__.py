"""``python -m controlplane``: the control plane process, started by the supervisor."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import socket
import sys
import time

from aiohttp import web
from setproctitle import setproctitle

from controlplane.admin import AdminApi
from controlplane.app import make_app
from controlplane.calls import Calls, NodeIdentity
from controlplane.faces.realtime import RealtimeFace
from controlplane.guard import OpenRequests, http_logger
from controlplane.origins import is_loopback_address
from controlplane.talk_page import TalkPage
from controlplane.worker_view import WorkerView
from dataplane.log import flush, get_logger, setup
from dataplane.node import NodeState
from dataplane.proto.address import Address
from dataplane.proto.ufrag import ClusterKeys
from dataplane.shm.enums import RegionKind, WorkerKind
from dataplane.shm.flows import FlowTable
from dataplane.shm.names import SegmentNames
from dataplane.shm.routes import RouteTable
from dataplane.shm.segment import Segment
from dataplane.shm.sessions import SessionTable
from dataplane.shm.status import StatusTable
from dataplane.shm.workers import WorkerTable

log = get_logger()

TICK_S = 0.1
HEARTBEAT_NS = 500_000_000
SHUTDOWN_S = 2.0
"""For requests that are under way at SIGTERM."""
KEEP_ALIVE_S = 75.0


class ControlPlane:
    """Shared memory, the calls in it, and the HTTP side."""

    def __init__(self, node: NodeState, incarnation: int) -> None:
        names = SegmentNames(node.instance)

        def attach(name: str, kind: RegionKind, writable: bool) -> Segment:
            return Segment.attach(name, kind, node.boot_id, writable)

        config = node.config
        self._node = node
        self._routes = RouteTable(attach(names.routes, RegionKind.ROUTES, True))
        workers = WorkerTable(attach(names.workers, RegionKind.WORKERS, True))
        flows = [
            FlowTable(attach(names.flows(relay), RegionKind.FLOWS, False))
            for relay in range(config.relays)
        ]
        self._row = workers.open_row(WorkerKind.CONTROL_PLANE, 0, incarnation)
        self._heartbeat_ns = 0
        view = WorkerView(workers, config.transceivers)
        self._calls = Calls(
            SessionTable(attach(names.sessions, RegionKind.SESSIONS, True)),
            StatusTable(attach(names.status, RegionKind.STATUS, False)),
            view,
            _identity(node),
        )
        self._realtime = RealtimeFace(self._calls, config.backends, self._row)
        self._admin = AdminApi(config, self._calls, workers, view, self._routes, flows)

    def take_over(self) -> None:
        """Brings calls and routes to where they should be, whatever was there."""
        self._write_routes()
        self._calls.recover(time.monotonic_ns())
        self._tick()

    def _write_routes(self) -> None:
        """The local transceivers' hop sockets, and no others of this node."""
        node = self._node
        for worker, port in enumerate(node.hop_ports):
            self._routes.set(node.node_id, worker, Address.from_text("127.0.0.1", port).ip, port)
        for route in self._routes.all():
            if route.node_id == node.node_id and route.worker >= len(node.hop_ports):
                self._routes.clear(route.node_id, route.worker)

    def _tick(self) -> None:
        now_ns = time.monotonic_ns()
        self._calls.tick(now_ns)
        if now_ns - self._heartbeat_ns >= HEARTBEAT_NS:
            self._heartbeat_ns = now_ns
            self._row.heartbeat(now_ns, len(self._calls))

    async def run(self, listener: socket.socket) -> None:
        """Serves until SIGTERM or SIGINT."""
        stopping = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        open_requests = OpenRequests()
        app = make_app(
            self._node.config.api_key, self._realtime, self._admin, TalkPage(), open_requests
        )
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=http_logger(),
            shutdown_timeout=0.1,
            keepalive_timeout=KEEP_ALIVE_S,
            lingering_time=1.0,
        )
        await runner.setup()
        site = web.SockSite(runner, listener)
        await site.start()
        host, port = listener.getsockname()[:2]
        log.info("control_plane.ready", http=f"{host}:{port}")
        while not stopping.is_set():
            try:
                self._tick()
            except Exception:
                log.exception("control_plane.tick_failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), TICK_S)
        log.info("control_plane.stopping", calls=len(self._calls))
        # aiohttp would cut off a body that is still coming in. Who connects from
        # here on waits in the listening socket for the next control plane.
        await site.stop()
        await open_requests.wait_none(SHUTDOWN_S)
        await runner.cleanup()


def _identity(node: NodeState) -> NodeIdentity:
    return NodeIdentity(
        node_id=node.node_id,
        keys=ClusterKeys.from_text(node.cluster_keys),
        fingerprint_sha256=node.fingerprint_sha256,
        candidates=tuple((host, node.udp_port) for host in node.config.advertise),
    )


def refusal_to_serve(node: NodeState, listener: socket.socket) -> str | None:
    """Why this node must not answer, in words; None if it may."""
    host = listener.getsockname()[0]
    if not node.config.api_key and not is_loopback_address(host):
        return f"HTTP listens on {host}, beyond loopback, and no EARSHOT_API_KEY is set"
    if not node.config.advertise:
        return "the node file names no address to advertise"
    return None


def main() -> int:
    """Exit status 0 after SIGTERM, 2 when the configuration is not to be served."""
    parser = argparse.ArgumentParser(prog="python -m controlplane", description=__doc__)
    parser.add_argument("--node", required=True, help="path of node.json")
    parser.add_argument("--incarnation", type=int, required=True)
    parser.add_argument("--http-fd", type=int, required=True, help="the listening TCP socket")
    arguments = parser.parse_args()
    node = NodeState.load(arguments.node)
    setproctitle("earshot control plane")
    setup("control plane", node.config.log_format, node.config.log_level)
    listener = socket.socket(fileno=arguments.http_fd)
    listener.setblocking(False)
    problem = refusal_to_serve(node, listener)
    if problem is not None:
        log.error("control_plane.refused", problem=problem)
        flush()
        return 2
    control_plane = ControlPlane(node, arguments.incarnation)
    control_plane.take_over()
    asyncio.run(control_plane.run(listener))
    flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
