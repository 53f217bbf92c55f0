"""The talk page as a person uses it, and what the browser knows about the call."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.browser import Page
from tests.support.speech import Samples

PICTURES = Path(os.environ.get("EARSHOT_TEST_PICTURES", "build/test-pictures"))
"""Where screenshots go, for a person to look at."""

# Chromium hands out the decoded track itself: no resampler, no second clock.
_RECORD_TRACK = """(async () => {
  const [track] = document.querySelector("#far").srcObject.getAudioTracks();
  const reader = new MediaStreamTrackProcessor({ track }).readable.getReader();
  const parts = [];
  const end = performance.now() + MILLISECONDS;
  let rate = 0;
  while (performance.now() < end) {
    const { value, done } = await reader.read();
    if (done) break;
    rate = value.sampleRate;
    const part = new Float32Array(value.numberOfFrames);
    value.copyTo(part, { planeIndex: 0, format: "f32-planar" });
    parts.push(part);
    value.close();
  }
  await reader.cancel();
  return encode(rate, parts);
})()"""

# Elsewhere: deprecated, but it needs no script of its own that the page's
# Content-Security-Policy would have to allow.
_RECORD_CONTEXT = """(async () => {
  const context = new AudioContext({ sampleRate: 48000 });
  const source = context.createMediaStreamSource(document.querySelector("#far").srcObject);
  const recorder = context.createScriptProcessor(4096, 1, 1);
  const parts = [];
  recorder.onaudioprocess = ({ inputBuffer }) => {
    parts.push(inputBuffer.getChannelData(0).slice());
  };
  source.connect(recorder);
  recorder.connect(context.destination);
  await new Promise((resolve) => { setTimeout(resolve, MILLISECONDS); });
  source.disconnect();
  recorder.disconnect();
  await context.close();
  return encode(context.sampleRate, parts);
})()"""

_ENCODE = """(() => {
  globalThis.encode = (rate, parts) => {
    const pcm = new Int16Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      for (const sample of part) pcm[at++] = Math.max(-1, Math.min(1, sample)) * 32767;
    }
    let text = "";
    const bytes = new Uint8Array(pcm.buffer);
    for (let i = 0; i < bytes.length; i += 8192) {
      text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    }
    return { rate, pcm: btoa(text) };
  };
  return true;
})()"""


async def open_page(page: Page, url: str, query: str = "backend=echo&raw=1") -> None:
    """Loads the page and waits for the list of backends."""
    await page.goto(f"{url}/?{query}")
    await page.wait_for("document.querySelector('#backend option[value]') !== null")


async def state(page: Page) -> str:
    return str(await page.evaluate("document.body.dataset.state"))


async def wait_for_state(page: Page, *wanted: str, timeout_s: float = 20.0) -> str:
    """Waits until the page shows one of the states, and returns which."""
    names = json.dumps(wanted)
    return str(
        await page.wait_for(
            f"{names}.includes(document.body.dataset.state) && document.body.dataset.state",
            timeout_s,
        )
    )


async def message(page: Page) -> str:
    """Headline and explanation, in one line."""
    text = await page.evaluate("document.querySelector('.status').innerText")
    return " ".join(str(text).split())


async def talk(page: Page) -> None:
    """Presses Talk and waits for the call to be up."""
    await page.click("#talk")
    reached = await wait_for_state(page, "live", "failed")
    assert reached == "live", await message(page)


async def record(page: Page, milliseconds: int, *, from_track: bool) -> tuple[int, Samples]:
    """What the far end is heard to say from now on: (rate, mono PCM)."""
    await page.evaluate(_ENCODE)
    script = _RECORD_TRACK if from_track else _RECORD_CONTEXT
    recorded = await page.evaluate(script.replace("MILLISECONDS", str(milliseconds)))
    return int(recorded["rate"]), np.frombuffer(base64.b64decode(recorded["pcm"]), "<i2")


async def get_stats(page: Page) -> list[dict[str, Any]]:
    """The call's getStats, all reports."""
    reports = await page.evaluate(
        "earshot.call.connection.getStats().then((report) => [...report.values()])"
    )
    return list(reports)


async def event_log(page: Page) -> list[dict[str, str]]:
    """The page's event log: way (out, in, note) and body."""
    rows = await page.evaluate(
        """[...document.querySelectorAll("#event-log li")].map((row) => (
             { way: row.dataset.way, body: row.querySelector(".body").textContent }))"""
    )
    return list(rows)


async def timeline(page: Page) -> dict[str, float | None]:
    """Milliseconds from the start of the call, as the waterfall draws them."""
    rows = await page.evaluate(
        """Object.fromEntries([...document.querySelectorAll("[data-milestone]")].map((row) => [
             row.dataset.milestone, row.dataset.ms ? Number(row.dataset.ms) : null]))"""
    )
    return dict(rows)


async def picture(page: Page, name: str) -> None:
    """Saves a screenshot for a person to look at."""
    _save(name, await page.screenshot())


def _save(name: str, png: bytes) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / f"{name}.png").write_bytes(png)
