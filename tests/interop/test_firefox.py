"""Firefox, through the talk page: it connects, and hears its own tone come back."""

from __future__ import annotations

import asyncio
import base64
import io
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.interop import talk_page
from tests.interop.test_chromium import SRTP_PROFILES
from tests.support.browser import Page, firefox
from tests.support.node import Node

RATE = 48_000

# Headless Firefox on a machine without a sound card has no running AudioContext; its
# MediaRecorder works all the same.
RECORD = """(async () => {
  const encode = async (stream) => {
    const recorder = new MediaRecorder(stream);
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    recorder.start();
    await new Promise((resolve) => { setTimeout(resolve, 3000); });
    const stopped = new Promise((resolve) => { recorder.onstop = resolve; });
    recorder.stop();
    await stopped;
    const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
  };
  return Promise.all([
    encode(earshot.call.stream), encode(document.querySelector("#far").srcObject),
  ]);
})()"""


@dataclass
class Talk:
    said: NDArray[np.float64]
    heard: NDArray[np.float64]
    stats: list[dict[str, Any]]
    levels: dict[str, float]
    events: list[dict[str, str]]
    timeline: dict[str, float | None]
    row: dict[str, Any]
    """What the admin view said of the call while it went on."""
    ended: str
    problems: list[str]

    def report(self, kind: str) -> dict[str, Any]:
        return next(stat for stat in self.stats if stat["type"] == kind)


async def the_call(url: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/admin/v1/calls") as response:
        calls: list[dict[str, Any]] = (await response.json())["calls"]
    return next(call for call in calls if not call["ended"])


async def one_call(url: str) -> Talk:
    async with firefox() as page:
        await talk_page.open_page(page, url)
        await talk_page.talk(page)
        said, heard = [decode(base64.b64decode(text)) for text in await page.evaluate(RECORD)]
        await page.wait_for("!document.querySelector('#event-text').disabled")
        await page.click("#event-text")
        await page.type_text('{"type": "hello"}\n')
        await page.wait_for("document.querySelector('#event-log [data-way=in]') !== null")
        levels = await mute_and_unmute(page)
        stats = await talk_page.get_stats(page)
        await talk_page.picture(page, "firefox-live")
        events = await talk_page.event_log(page)
        timeline = await talk_page.timeline(page)
        row = await the_call(url)
        await page.click("#talk")
        await talk_page.wait_for_state(page, "ended", "failed")
        ended = await talk_page.message(page)
        problems = list(page.problems)
    return Talk(said, heard, stats, levels, events, timeline, row, ended, problems)


async def mute_and_unmute(page: Page) -> dict[str, float]:
    """How loud the far end gets while we say nothing, and when we speak again (0 to 1)."""
    level = """earshot.call.connection.getStats().then((report) =>
        [...report.values()].find(({ type }) => type === "inbound-rtp").audioLevel)"""
    await page.click("#mute")
    await page.wait_for(f"{level}.then((value) => value < 0.001)")
    muted = float(await page.evaluate(level))
    await page.click("#mute")
    again = float(await page.wait_for(f"{level}.then((value) => value > 0.02 && value)"))
    return {"muted": muted, "again": again}


def decode(recording: bytes) -> NDArray[np.float64]:
    """A MediaRecorder's file to mono at `RATE`, full scale 1."""
    with av.open(io.BytesIO(recording), "r") as container:
        frames = [frame.to_ndarray() for frame in container.decode(audio=0)]
        layout = container.streams.audio[0]
        assert layout.rate == RATE
        channels = layout.channels
    samples = np.concatenate(frames, axis=1).astype(np.float64)
    if samples.shape[0] == 1:  # interleaved
        samples = samples.reshape(-1, channels).T
    mono: NDArray[np.float64] = samples.mean(axis=0)
    return mono


def pitch(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Hz of the strongest tone of the last second, and its share of that second's energy."""
    power = np.abs(np.fft.rfft(samples[-RATE:] * np.hanning(RATE))) ** 2
    peak = int(np.argmax(power))
    return float(peak), float(power[max(0, peak - 3) : peak + 4].sum() / power.sum())


@pytest.fixture(scope="module")
def call(node: Node) -> Talk:
    return asyncio.run(one_call(node.http_url))


def test_it_hears_its_own_tone(call: Talk) -> None:
    said_hz, said_share = pitch(call.said)
    heard_hz, heard_share = pitch(call.heard)
    print(said_hz, said_share, heard_hz, heard_share)
    assert said_share > 0.9, "the fake microphone is no tone any more"
    assert abs(heard_hz - said_hz) <= 2
    assert heard_share > 0.8


def test_what_it_hears_follows_what_it_says(call: Talk) -> None:
    assert call.levels["muted"] < 0.001
    assert call.levels["again"] > 0.02


def test_packets_arrive_and_none_is_lost(call: Talk) -> None:
    inbound = call.report("inbound-rtp")
    assert inbound["packetsReceived"] > 100
    assert inbound["packetsLost"] == 0


def test_the_media_is_encrypted(call: Talk) -> None:
    # Not every Firefox ESR tells it in getStats (140 has no transport report): ask the edge.
    assert SRTP_PROFILES.search(call.row["srtp_profile"]), call.row
    for transport in (stat for stat in call.stats if stat["type"] == "transport"):
        assert transport["dtlsState"] == "connected"
        assert SRTP_PROFILES.search(transport["srtpCipher"]), transport["srtpCipher"]


def test_the_path_is_our_one_udp_port(call: Talk, node: Node) -> None:
    pairs = [s for s in call.stats if s["type"] == "candidate-pair" and s.get("selected")]
    remote = next(stat for stat in call.stats if stat["id"] == pairs[0]["remoteCandidateId"])
    assert remote["port"] == node.udp_port


def test_the_data_channel_echoes(call: Talk) -> None:
    assert '{ "type": "hello" }' in [e["body"] for e in call.events if e["way"] == "in"]


def test_the_waterfall_is_filled(call: Talk) -> None:
    assert None not in call.timeline.values(), call.timeline


def test_the_page_says_why_the_call_ended(call: Talk) -> None:
    assert re.fullmatch(r"The call has ended\. You hung up\.", call.ended)
    assert call.problems == []
