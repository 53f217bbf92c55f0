"""The control plane as a process: real HTTP, real shared memory."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from controlplane.sdp import parse_sdp
from dataplane.shm.enums import CallState, EndReason, SessionState, WorkerKind
from tests.support.bare_node import CHROMIUM_OFFER, BareNode, bare_node, listening_socket

ROOT = Path(__file__).parents[2]
PATIENCE_S = 30.0
FOREVER_NS = 3_600_000_000_000
SDP = {"Content-Type": "application/sdp"}
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str) -> T:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited for {what}"
        time.sleep(0.02)
    return value


@dataclass
class Response:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json")
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["type"] == ("server_error" if self.status >= 500 else "invalid_request_error")
        return error


class Edge:
    """A control plane process on a bare node's tables."""

    def __init__(self, node: BareNode, base: Path) -> None:
        self.node = node
        self.listener = listening_socket()
        self.port = int(self.listener.getsockname()[1])
        self.node_path = base / f"node-{self.port}.json"
        self.log_path = base / f"log-{self.port}"
        node.state.save(self.node_path)
        self.life = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.life += 1
        fd = self.listener.fileno()
        command = ["-m", "controlplane", "--node", str(self.node_path), "--http-fd", str(fd)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--incarnation", str(self.life)],
                cwd=ROOT,
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE_S)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None:
            self.end(signal.SIGKILL)
        self.listener.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            got = connection.getresponse()
            return Response(got.status, got.headers, got.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Response:
        return self.request("GET", path, headers=headers)

    def offer(
        self,
        body: bytes = CHROMIUM_OFFER,
        query: str = "?model=echo",
        headers: Mapping[str, str] = SDP,
    ) -> Response:
        return self.request("POST", f"/v1/realtime/calls{query}", body, headers)

    def call(self, response: Response) -> str:
        """The id of the call that the response created."""
        assert response.status == 201, response.body
        return response.headers["Location"].rpartition("/")[2]

    def slot(self, call_id: str) -> int:
        return int(self.get(f"/admin/v1/calls/{call_id}").json["slot"])


@contextmanager
def running_edge(base: Path, **settings: Any) -> Iterator[Edge]:
    """Workers that live for an hour, and a control plane that answers."""
    with bare_node(**settings) as node:
        hour = time.monotonic_ns() + FOREVER_NS
        node.start_transceivers(hour)
        node.start_worker(WorkerKind.RELAY, 0, hour)
        edge = Edge(node, base)
        try:
            edge.start()
            yield edge
        finally:
            edge.close()


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    with running_edge(tmp_path_factory.mktemp("edge"), max_sessions=256) as made:
        yield made


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """An edge with a key."""
    base = tmp_path_factory.mktemp("locked")
    with running_edge(base, api_key="correct horse battery") as made:
        yield made


def form(fields: Mapping[str, bytes]) -> tuple[bytes, dict[str, str]]:
    parts = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields.items()
    )
    return parts + b"--b--\r\n", {"Content-Type": "multipart/form-data; boundary=b"}


# --- offers ---


def test_offer(edge: Edge) -> None:
    response = edge.offer()
    assert response.status == 201
    assert response.headers["Content-Type"] == "application/sdp"
    assert response.headers["Location"].startswith("/v1/realtime/calls/rtc_")
    answer = parse_sdp(response.body)
    assert answer.media[0].setup == "active"
    assert [f.digest.hex(":").upper() for f in answer.media[0].fingerprints] == [
        edge.node.state.fingerprint_sha256
    ]
    assert b"udp 2130706431 127.0.0.1 3478 typ host" in response.body
    assert b"udp 2130706175 ::1 3478 typ host" in response.body
    view = edge.get(f"/admin/v1/calls/{edge.call(response)}").json
    assert (view["state"], view["backend"], view["ended"]) == ("offered", "echo", False)
    snapshot = edge.node.sessions.read(view["slot"])
    assert snapshot is not None
    assert snapshot[1].call_id == view["id"]


def test_offer_as_a_form(edge: Edge) -> None:
    session = b'{ "type": "realtime", "model": "parrot", "voice": "\xc3\xa4" }'
    response = edge.offer(*_posted({"sdp": CHROMIUM_OFFER, "session": session}))
    call_id = edge.call(response)
    assert edge.get(f"/admin/v1/calls/{call_id}").json["backend"] == "parrot"
    snapshot = edge.node.sessions.read(edge.slot(call_id))
    assert snapshot is not None
    assert snapshot[1].options == session


def _posted(fields: Mapping[str, bytes], query: str = "") -> tuple[bytes, str, dict[str, str]]:
    body, headers = form(fields)
    return body, query, headers


def test_the_query_wins_over_the_session(edge: Edge) -> None:
    fields = {"sdp": CHROMIUM_OFFER, "session": b'{"model":"nobody"}'}
    call_id = edge.call(edge.offer(*_posted(fields, "?model=echo")))
    assert edge.get(f"/admin/v1/calls/{call_id}").json["backend"] == "echo"


def test_session_as_large_as_allowed(edge: Edge) -> None:
    session = json.dumps({"x": "y" * 15351}).encode()
    assert len(session) == 15360
    fields = {"sdp": CHROMIUM_OFFER, "session": session}
    slot = edge.slot(edge.call(edge.offer(*_posted(fields, "?model=echo"))))
    snapshot = edge.node.sessions.read(slot)
    assert snapshot is not None
    assert snapshot[1].options == session


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"session": b"{}"}, "missing_sdp", "sdp"),
        ({"sdp": CHROMIUM_OFFER, "session": b"{"}, "invalid_json", "session"),
        ({"sdp": CHROMIUM_OFFER, "session": b"[]"}, "invalid_session", "session"),
        ({"sdp": CHROMIUM_OFFER, "session": b"\xff"}, "invalid_json", "session"),
        ({"sdp": CHROMIUM_OFFER, "session": b"[" * 15000}, "invalid_json", "session"),
        (
            {"sdp": CHROMIUM_OFFER, "session": b'"' + b"x" * 15360},
            "session_too_large",
            "session",
        ),
        ({"sdp": b"v=0", "session": b'{"model":"echo"}'}, "sdp_syntax", "sdp"),
    ],
)
def test_bad_forms(edge: Edge, fields: dict[str, bytes], code: str, param: str) -> None:
    response = edge.offer(*_posted(fields))
    assert response.status == 400
    assert (response.error["code"], response.error["param"]) == (code, param)


def test_a_form_without_boundary(edge: Edge) -> None:
    response = edge.offer(headers={"Content-Type": "multipart/form-data"})
    assert (response.status, response.error["code"]) == (400, "bad_form")


def changed(old: bytes, new: bytes) -> bytes:
    assert old in CHROMIUM_OFFER
    return CHROMIUM_OFFER.replace(old, new)


@pytest.mark.parametrize(
    ("offer", "code", "line"),
    [
        (b"", "sdp_syntax", "line 1"),
        (b"\x16\x03\x01" * 20, "sdp_syntax", "line 1"),
        (changed(b"m=audio 9", b"m=audio nine"), "sdp_syntax", 'line 8 "m=audio nine UDP'),
        (CHROMIUM_OFFER[:700], "sdp_syntax", 'line 20 "a=extmap"'),
        (CHROMIUM_OFFER + b"a=x\r\n" * 14000, "sdp_too_large", "line 12"),
        (CHROMIUM_OFFER + b"a=x\r\n" * 400000, "sdp_too_large", "line 12"),
        (changed(b"m=audio 9", b"m=video 9"), "sdp_no_audio", 'line 8 "m=video'),
        (changed(b"a=fingerprint:sha-256 ", b"a=x-"), "sdp_no_fingerprint", 'line 8 "m=audio'),
        (
            changed(b"sha-256 9C:85:CF:7F:41:38:3B:67:A8:F7:D4:B7:", b"sha-1 "),
            "sdp_weak_fingerprint",
            'line 14 "a=fingerprint:sha-1 ',
        ),
        (changed(b"opus/48000/2", b"vorbis/48000/2"), "sdp_no_codec", 'line 8 "m=audio'),
    ],
)
def test_bad_offers_are_told_the_line(edge: Edge, offer: bytes, code: str, line: str) -> None:
    response = edge.offer(offer)
    assert response.status == 400
    assert (response.error["code"], response.error["param"]) == (code, "sdp")
    assert line in response.error["message"]


def test_unknown_model(edge: Edge) -> None:
    for query in ("?model=nobody", "?model=", "?model=%00%FF"):
        response = edge.offer(query=query)
        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert "echo, parrot" in response.error["message"]
    response = edge.offer(query="")
    assert (response.status, response.error["code"]) == (400, "model_required")
    assert "echo, parrot" in response.error["message"]


def test_a_single_backend_needs_no_name(tmp_path: Path) -> None:
    with running_edge(tmp_path, backends=("only",)) as edge:
        call_id = edge.call(edge.offer(query=""))
        assert edge.get(f"/admin/v1/calls/{call_id}").json["backend"] == "only"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_other_content_types(edge: Edge, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = edge.offer(headers=headers)
    assert (response.status, response.error["code"]) == (415, "unsupported_media_type")
    assert "application/sdp" in response.error["message"]
    assert ("JSON" in response.error["message"].partition(",")[2]) == ("json" in content_type)


def test_content_type_with_a_charset(edge: Edge) -> None:
    assert edge.offer(headers={"Content-Type": "Application/SDP; charset=utf-8"}).status == 201


def test_a_form_that_is_too_large(edge: Edge) -> None:
    response = edge.offer(*_posted({"sdp": b"v" * 70000, "session": b" " * 70000}))
    assert (response.status, response.error["code"]) == (413, "body_too_large")


def test_full_table_and_no_transceiver(tmp_path: Path) -> None:
    with running_edge(tmp_path, max_sessions=2) as edge:
        first = edge.call(edge.offer())
        edge.offer()
        response = edge.offer()
        assert (response.status, response.error["code"]) == (503, "table_full")
        assert response.headers["Retry-After"] == "5"
        edge.request("POST", f"/v1/realtime/calls/{first}/hangup")
        wait_until(lambda: edge.offer().status == 201, "the tombstone to make room")
        edge.node.start_transceivers(1)
        response = wait_until(
            lambda: (r := edge.offer()).error["code"] == "no_transceiver" and r,
            "the transceivers to be missed",
        )
        assert response.status == 503
        assert response.headers["Retry-After"] == "1"
        health = edge.get("/healthz")
        assert (health.status, health.json["ok"]) == (503, False)


# --- hang-up ---


def test_hang_up(edge: Edge) -> None:
    call_id = edge.call(edge.offer())
    slot = edge.slot(call_id)
    writer = edge.node.start_call(slot)
    response = edge.request("POST", f"/v1/realtime/calls/{call_id}/hangup")
    assert (response.status, response.json["id"]) == (200, call_id)
    assert edge.node.sessions.ident(slot).state is SessionState.CLOSING
    assert edge.get(f"/admin/v1/calls/{call_id}").json["state"] == "closing"
    edge.node.end_call(writer, EndReason.HANGUP, time.monotonic_ns())
    wait_until(lambda: edge.node.sessions.ident(slot).state is SessionState.ENDED, "the row to end")
    view = edge.get(f"/admin/v1/calls/{call_id}").json
    assert (view["state"], view["ended"], view["reason"]) == ("ended", True, "hangup")
    again = edge.request("POST", f"/v1/realtime/calls/{call_id}/hangup")
    assert (again.status, again.json["ended"]) == (200, True)


@pytest.mark.parametrize("call_id", ["rtc_" + "0" * 32, "rtc_", "nonsense", "..%2f.."])
def test_hang_up_of_an_unknown_call(edge: Edge, call_id: str) -> None:
    response = edge.request("POST", f"/v1/realtime/calls/{call_id}/hangup")
    assert (response.status, response.error["code"]) == (404, "call_not_found")


# --- reading ---


def test_models(edge: Edge) -> None:
    body = edge.get("/v1/models").json
    assert body["object"] == "list"
    assert [(model["id"], model["object"]) for model in body["data"]] == [
        ("echo", "model"),
        ("parrot", "model"),
    ]


def test_health(edge: Edge) -> None:
    health = edge.get("/healthz").json
    assert health["ok"]
    assert health["transceivers"] == {"live": 2, "configured": 2}
    assert health["relays"] == {"live": 1, "configured": 1}
    assert health["calls"]["capacity"] == 256


def test_workers(edge: Edge) -> None:
    before = counters(edge)
    edge.offer()
    edge.offer(b"")
    edge.request("POST", f"/v1/realtime/calls/{edge.call(edge.offer())}/hangup")
    after = counters(edge)
    names = ("offers", "offers_refused", "calls_hangup")
    assert [after[name] - before[name] for name in names] == [3, 1, 1]
    workers = edge.get("/admin/v1/workers").json["workers"]
    assert [(w["kind"], w["index"]) for w in workers] == [
        ("relay", 0), ("transceiver", 0), ("transceiver", 1), ("control_plane", 0),
    ]  # fmt: skip
    relay, transceiver, _, control_plane = workers
    assert relay["flows"] == 0
    assert "drop_stun_bad_integrity" in relay["counters"]
    assert "drop_srtp_auth" in transceiver["counters"]
    assert transceiver["pid"] == os.getpid()
    assert edge.process is not None
    assert control_plane["pid"] == edge.process.pid
    assert control_plane["live"]
    assert control_plane["uptime_s"] > 0


def counters(edge: Edge) -> Any:
    workers = edge.get("/admin/v1/workers").json["workers"]
    return next(w["counters"] for w in workers if w["kind"] == "control_plane")


def test_routes(edge: Edge) -> None:
    assert edge.get("/admin/v1/routes").json["routes"] == [
        {"node_id": 7, "worker": 0, "address": "127.0.0.1:40000/udp"},
        {"node_id": 7, "worker": 1, "address": "127.0.0.1:40001/udp"},
    ]


def test_a_call_as_its_transceiver_tells_it(edge: Edge) -> None:
    call_id = edge.call(edge.offer())
    writer = edge.node.start_call(edge.slot(call_id))
    snapshot = edge.node.sessions.read(edge.slot(call_id))
    assert snapshot is not None
    offered_ns = snapshot[1].offer_deadline_ns - 30_000_000_000
    f = writer.fields
    f.state = CallState.CONNECTED
    f.backend_state = 3
    f.srtp_profile = 7
    f.relay = 1
    f.client.ip = bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 9])
    f.client.port = 5004
    f.client.transport = 1
    f.local.ip = bytes(15) + b"\x01"
    f.local.port = 3478
    f.local.transport = 1
    f.first_stun_ns = offered_ns + 12_000_000
    f.connected_ns = offered_ns + 34_500_000
    f.packets_received = 95
    f.packets_expected = 100
    f.packets_lost = 5
    f.rtt_us = 21_500
    f.playout_delay_us = 900
    f.playout_queue_ms = 40
    f.detail = "päth".encode()
    writer.publish()
    view = edge.get(f"/admin/v1/calls/{call_id}").json
    assert (view["state"], view["backend_state"], view["relay"]) == ("connected", "ready", 1)
    assert (view["client"], view["local"]) == ("192.0.2.9:5004/udp", "[::1]:3478/udp")
    assert view["srtp_profile"] == "SRTP_AEAD_AES_128_GCM"
    assert (view["packets"]["received"], view["loss"]) == (95, 0.05)
    assert (view["rtt_ms"], view["playout_delay_ms"]) == (21.5, 0.9)
    assert view["timeline_ms"]["ice"] == 12.0
    assert view["timeline_ms"]["connected"] == 34.5
    assert view["timeline_ms"]["first_audio_in"] is None
    assert view["detail"] == "päth"
    listed = {call["id"]: call for call in edge.get("/admin/v1/calls").json["calls"]}
    assert listed[call_id]["packets"] == view["packets"]
    # A call that no check has reached yet has the same keys.
    waiting = edge.get(f"/admin/v1/calls/{edge.call(edge.offer())}").json
    assert set(waiting) == set(view)
    assert waiting["packets"] is None


def test_unknown_call(edge: Edge) -> None:
    response = edge.get("/admin/v1/calls/rtc_0")
    assert (response.status, response.error["code"]) == (404, "call_not_found")


# --- errors ---


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/", 404, "not_found"),
        ("GET", "/page/nothing.js", 404, "not_found"),
        ("GET", "/page/../app.py", 404, "not_found"),
        ("GET", "/page/%2e%2e/app.py", 404, "not_found"),
        ("GET", "/page/..%2f__main__.py", 404, "not_found"),
        ("GET", "/page//etc/passwd", 404, "not_found"),
        ("GET", "/page/%00.js", 404, "not_found"),
        ("POST", "/nothing", 404, "not_found"),
        ("GET", "/v1/realtime/calls", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_every_error_is_json(edge: Edge, method: str, path: str, status: int, code: str) -> None:
    response = edge.request(method, path)
    assert (response.status, response.error["code"]) == (status, code)
    if status == 405:
        assert response.headers["Allow"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_a_body_that_stops_early_costs_nothing(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.port)) as connection:
        connection.sendall(
            b"POST /v1/realtime/calls?model=echo HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/sdp\r\nContent-Length: 1000\r\n\r\nv=0"
        )
    assert edge.get("/healthz").status == 200


def test_a_broken_chunk_is_refused(edge: Edge) -> None:
    with socket.create_connection(("127.0.0.1", edge.port), timeout=PATIENCE_S) as connection:
        connection.sendall(
            b"POST /v1/realtime/calls?model=echo HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/sdp\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
        )
        assert b" 400 " in connection.recv(65536).split(b"\r\n")[0]
    assert "Traceback" not in edge.log


# --- who may ask ---


def test_key(locked: Edge) -> None:
    wait_until(lambda: locked.get("/healthz").status == 200, "the edge")
    for path in ("/v1/models", "/admin/v1/calls", "/admin/v1/workers", "/admin/v1/routes"):
        assert locked.get(path, Authorization="Bearer correct horse battery").status == 200
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}):
            response = locked.get(path, **wrong)
            assert (response.status, response.error["code"]) == (401, "invalid_api_key")
            assert response.headers["WWW-Authenticate"] == "Bearer"
    assert locked.offer().status == 401
    assert locked.offer(headers={**SDP, "Authorization": "bearer correct horse battery"}).status
    assert locked.get("/").status == 200


def test_a_foreign_page_is_refused_without_a_key(edge: Edge) -> None:
    before = counters(edge)["offers"]
    body, headers = form({"sdp": CHROMIUM_OFFER})
    for origin in ("https://evil.example", "null"):
        response = edge.offer(body, headers={**headers, "Origin": origin})
        assert (response.status, response.error["code"]) == (403, "origin_not_allowed")
        assert "Access-Control-Allow-Origin" not in response.headers
        preflight = edge.request("OPTIONS", "/v1/realtime/calls", headers=_preflight(origin))
        assert preflight.status == 403
    assert counters(edge)["offers"] == before


def _preflight(origin: str) -> dict[str, str]:
    return {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-openai-agents-sdk",
    }


def test_a_rebound_name_is_refused_without_a_key(edge: Edge) -> None:
    response = edge.get("/admin/v1/calls", Host=f"evil.example:{edge.port}")
    assert (response.status, response.error["code"]) == (403, "host_not_allowed")


def test_a_page_on_localhost_may_call(edge: Edge) -> None:
    origin = "http://localhost:5173"
    preflight = edge.request("OPTIONS", "/v1/realtime/calls", headers=_preflight(origin))
    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == origin
    assert "X-OpenAI-Agents-SDK" in preflight.headers["Access-Control-Allow-Headers"]
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    response = edge.offer(headers={**SDP, "Origin": origin, "X-OpenAI-Agents-SDK": "js"})
    assert response.status == 201
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Location" in response.headers["Access-Control-Expose-Headers"]
    assert response.headers["Vary"] == "Origin"
    refused = edge.offer(b"", headers={**SDP, "Origin": origin})
    assert refused.headers["Access-Control-Allow-Origin"] == origin


def test_with_a_key_any_page_may_call(locked: Edge) -> None:
    origin = "https://app.example"
    preflight = locked.request("OPTIONS", "/v1/realtime/calls", headers=_preflight(origin))
    assert preflight.status == 204
    key = {"Authorization": "Bearer correct horse battery"}
    response = locked.offer(headers={**SDP, **key, "Origin": origin, "Host": "edge.example"})
    assert response.status == 201
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Access-Control-Allow-Credentials" not in response.headers


# --- the page ---


def test_page(edge: Edge) -> None:
    page = edge.get("/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["Cache-Control"] == "no-cache"
    assert edge.get("/", **{"If-None-Match": page.headers["ETag"]}).status == 304
    assert edge.request("HEAD", "/").status == 200


def test_files_of_the_page(edge: Edge) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    files = [path for path in (ROOT / "controlplane/page").iterdir() if path.suffix in types]
    assert files
    for path in files:
        for url in (f"/{path.name}", f"/page/{path.name}"):
            response = edge.get(url)
            assert response.status == 200
            assert response.headers["Content-Type"].startswith(types[path.suffix])
            assert response.body == path.read_bytes()


# --- the process ---


def test_nothing_is_lost_when_it_is_killed(tmp_path: Path) -> None:
    with running_edge(tmp_path) as edge:
        running, closing = edge.call(edge.offer()), edge.call(edge.offer())
        writers = {name: edge.node.start_call(edge.slot(name)) for name in (running, closing)}
        edge.request("POST", f"/v1/realtime/calls/{closing}/hangup")
        assert edge.end(signal.SIGKILL) == -signal.SIGKILL
        # While nobody is there, one call ends and a client knocks: the
        # listening socket is the supervisor's, so the kernel lets it wait.
        edge.node.end_call(writers[closing], EndReason.HANGUP, time.monotonic_ns())
        answers: list[Response] = []
        client = threading.Thread(target=lambda: answers.append(edge.offer()))
        client.start()
        edge.start()
        client.join(PATIENCE_S)
        assert answers[0].status == 201
        calls = {call["id"]: call for call in edge.get("/admin/v1/calls").json["calls"]}
        assert calls[running]["ended"] is False
        assert calls[closing]["reason"] == "hangup"
        assert len(calls) == 3
        edge.request("POST", f"/v1/realtime/calls/{running}/hangup")
        state = edge.node.sessions.ident(calls[running]["slot"]).state
        assert state is SessionState.CLOSING
        control_plane = edge.get("/admin/v1/workers").json["workers"][-1]
        assert control_plane["incarnation"] == 2
        assert control_plane["counters"]["offers"] == 3


def test_sigterm_lets_requests_finish(tmp_path: Path) -> None:
    with running_edge(tmp_path) as edge:
        edge.get("/healthz")
        head = (
            b"POST /v1/realtime/calls?model=echo HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n" % len(CHROMIUM_OFFER)
        )
        with socket.create_connection(("127.0.0.1", edge.port), timeout=PATIENCE_S) as slow:
            slow.sendall(head + CHROMIUM_OFFER[:100])
            before = counters(edge)["offers"]
            assert before == 1  # it is being read
            assert edge.process is not None
            edge.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "control_plane.stopping" in edge.log, "the signal to be seen")
            slow.sendall(CHROMIUM_OFFER[100:])
            assert b" 201 " in slow.recv(65536).split(b"\r\n")[0]
        assert edge.process.wait(PATIENCE_S) == 0
        edge.process = None


def test_it_refuses_to_serve_beyond_loopback_without_a_key(tmp_path: Path) -> None:
    with bare_node() as node:
        edge = Edge(node, tmp_path)
        edge.listener.close()
        edge.listener = socket.create_server(("0.0.0.0", 0))
        edge.listener.set_inheritable(True)
        edge.start()
        assert edge.process is not None
        assert edge.process.wait(PATIENCE_S) == 2
        edge.process = None
        assert "EARSHOT_API_KEY" in edge.log
        edge.close()


def test_it_names_itself(edge: Edge) -> None:
    assert edge.get("/healthz").status == 200
    assert edge.process is not None
    title = Path(f"/proc/{edge.process.pid}/cmdline").read_bytes().rstrip(b"\0 ")
    assert title == b"earshot control plane"
