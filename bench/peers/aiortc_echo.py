"""aiortc's echo server behind the same HTTP face as Earshot's.

It decodes and encodes every frame with aiortc's own defaults (PyAV's libopus,
48 kHz stereo): what one gets from the usual Python way to do this.

usage: aiortc_echo.py PORT_FILE    (writes the port that it listens on there)
"""

from __future__ import annotations

import sys
from pathlib import Path

import aioice.ice
from aiohttp import web
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack

calls: set[RTCPeerConnection] = set()


async def create_call(request: web.Request) -> web.Response:
    """POST of an offer (application/sdp) → 201 with the answer."""
    call = RTCPeerConnection()
    calls.add(call)

    @call.on("track")
    def on_track(track: MediaStreamTrack) -> None:
        call.addTrack(track)

    @call.on("connectionstatechange")
    async def on_state() -> None:
        if call.connectionState in ("failed", "closed"):
            calls.discard(call)
            await call.close()

    await call.setRemoteDescription(RTCSessionDescription(await request.text(), "offer"))
    await call.setLocalDescription(await call.createAnswer())
    return web.Response(
        status=201,
        text=call.localDescription.sdp,
        content_type="application/sdp",
        headers={"Location": f"/v1/realtime/calls/aiortc_{id(call):x}"},
    )


async def serve() -> web.Application:
    """The application; loopback alone is offered, as in the bench of Earshot."""
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: ["127.0.0.1"]
    app = web.Application()
    app.router.add_post("/v1/realtime/calls", create_call)
    return app


def main(port_file: Path) -> None:
    """Serves until ended."""

    async def run() -> web.AppRunner:
        runner = web.AppRunner(await serve())
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port_file.with_suffix(".part").write_text(str(runner.addresses[0][1]))
        port_file.with_suffix(".part").rename(port_file)
        return runner

    import asyncio

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())
    loop.run_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
