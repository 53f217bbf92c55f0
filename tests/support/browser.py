"""Debian's Chromium and Firefox, headless, driven straight over a WebSocket.

Chromium speaks the DevTools protocol, Firefox WebDriver BiDi. A page of either
has the same few verbs here: go to an address, evaluate JavaScript, click and
type as a person would (trusted input events), wait for a condition, take a
picture. Nothing but aiohttp is needed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

START_S = 25.0
"""Longest time for a browser to open its debugging port on a busy machine."""
COMMAND_S = 25.0
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
"""Screenshots and recordings come back as one message."""

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
_FIREFOX_NAMES = ("firefox-esr", "firefox")
_CHROMIUM_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # containers and root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--hide-scrollbars",
    "--autoplay-policy=no-user-gesture-required",
    "--remote-debugging-port=0",
)
_FIREFOX_PREFERENCES: Mapping[str, bool | int | str] = {
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "media.autoplay.default": 0,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.active-protocols": 1,
}


class BrowserError(AssertionError):
    """A browser is missing, did not start, or refused a command."""


class Link:
    """Commands with numbered replies, and events, over one WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._listeners: list[tuple[str, Callable[[str, dict[str, Any]], None]]] = []
        self._reader = asyncio.create_task(self._read())

    def listen(self, listener: Callable[[str, dict[str, Any]], None], session: str = "") -> None:
        """Calls `listener(method, params)` for every event of that session."""
        self._listeners.append((session, listener))

    async def command(self, method: str, /, session: str = "", **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = reply
        await self._socket.send_str(json.dumps(message))
        try:
            return await asyncio.wait_for(reply, COMMAND_S)
        except TimeoutError:
            raise BrowserError(f"no reply to {method} within {COMMAND_S:.0f} s") from None

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is aiohttp.WSMsgType.TEXT:
                self._dispatch(json.loads(message.data))
        for reply in self._waiting.values():
            if not reply.done():
                reply.set_exception(BrowserError("the browser closed the connection"))

    def _dispatch(self, message: dict[str, Any]) -> None:
        if "id" not in message or message["id"] is None:
            for session, listener in self._listeners:
                if session == message.get("sessionId", ""):
                    listener(message.get("method", ""), message.get("params", {}))
            return
        reply = self._waiting.pop(message["id"], None)
        if reply is None or reply.done():
            return
        if "error" in message:
            # DevTools: an object; BiDi: a code, with the words beside it.
            reply.set_exception(BrowserError(str(message.get("message", message["error"]))))
        else:
            reply.set_result(message.get("result", {}))


class Page:
    """One tab. The two browsers differ in the underscored verbs alone."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.problems: list[str] = []
        """Uncaught exceptions, console errors and refused requests (a violated
        Content-Security-Policy is among them)."""

    async def goto(self, url: str) -> None:
        raise NotImplementedError

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; promises are awaited."""
        raise NotImplementedError

    async def screenshot(self) -> bytes:
        """A PNG of the whole page."""
        raise NotImplementedError

    async def resize(self, width: int, height: int) -> None:
        """The viewport, in CSS pixels."""
        raise NotImplementedError

    async def _press(self, x: float, y: float) -> None:
        raise NotImplementedError

    async def type_text(self, text: str) -> None:
        """Keys into what has the focus; a newline is Enter."""
        raise NotImplementedError

    async def click(self, selector: str) -> None:
        """A real mouse click in the middle of an element, scrolled into view."""
        place = await self.evaluate(
            f"""(() => {{
              const found = document.querySelector({json.dumps(selector)});
              if (!found) return null;
              found.scrollIntoView({{ block: "center", behavior: "instant" }});
              const box = found.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        if place is None:
            raise BrowserError(f"nothing matches {selector!r}")
        await self._press(*place)

    async def wait_for(self, expression: str, timeout_s: float = 15.0) -> Any:
        """Polls until the expression is truthy and returns its value."""
        deadline = time.monotonic() + timeout_s
        while True:
            value = await self.evaluate(expression)
            if value:
                return value
            if time.monotonic() > deadline:
                raise BrowserError(
                    f"{expression} stayed {value!r} for {timeout_s:.0f} s; the page says "
                    f"{await self.evaluate('document.body.innerText')!r}; {self.problems}"
                )
            await asyncio.sleep(0.05)


class ChromiumPage(Page):
    """A tab over the DevTools protocol."""

    def __init__(self, link: Link, session: str) -> None:
        super().__init__(link)
        self._session = session
        link.listen(self._note, session)

    async def command(self, method: str, /, **params: Any) -> dict[str, Any]:
        """Any command of the DevTools protocol, addressed to this tab."""
        return await self.link.command(method, self._session, **params)

    async def goto(self, url: str) -> None:
        reply = await self.command("Page.navigate", url=url)
        if "errorText" in reply:
            raise BrowserError(f"{url}: {reply['errorText']}")
        await self.wait_for("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        reply = await self.command(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in reply:
            details = reply["exceptionDetails"]
            raise BrowserError(details.get("exception", {}).get("description", details["text"]))
        return reply["result"].get("value")

    async def screenshot(self) -> bytes:
        reply = await self.command("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(reply["data"])

    async def resize(self, width: int, height: int) -> None:
        await self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def color_scheme(self, scheme: str) -> None:
        """``light`` or ``dark``, as prefers-color-scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.command("Emulation.setEmulatedMedia", features=[feature])

    async def type_text(self, text: str) -> None:
        for part in text.splitlines(keepends=True):
            await self.command("Input.insertText", text=part.rstrip("\n"))
            if part.endswith("\n"):
                enter = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
                await self.command("Input.dispatchKeyEvent", type="keyDown", text="\r", **enter)
                await self.command("Input.dispatchKeyEvent", type="keyUp", **enter)

    async def _press(self, x: float, y: float) -> None:
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            await self.command(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            entry = params["entry"]
            self.problems.append(f"{entry['text']} {entry.get('url', '')}".strip())
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.problems.append(" ".join(str(arg.get("value")) for arg in params["args"]))


class FirefoxPage(Page):
    """A tab over WebDriver BiDi."""

    def __init__(self, link: Link, context: str) -> None:
        super().__init__(link)
        self._context = context
        link.listen(self._note)

    async def goto(self, url: str) -> None:
        await self.link.command(
            "browsingContext.navigate", context=self._context, url=url, wait="complete"
        )

    async def evaluate(self, expression: str) -> Any:
        # BiDi has a serialization of its own; JSON text spares us the reading of it.
        reply = await self.link.command(
            "script.evaluate",
            expression=f"Promise.resolve({expression}).then(v => JSON.stringify(v) ?? 'null')",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        if reply["type"] == "exception":
            raise BrowserError(reply["exceptionDetails"]["text"])
        return json.loads(reply["result"]["value"])

    async def screenshot(self) -> bytes:
        reply = await self.link.command(
            "browsingContext.captureScreenshot", context=self._context, origin="document"
        )
        return base64.b64decode(reply["data"])

    async def resize(self, width: int, height: int) -> None:
        await self.link.command(
            "browsingContext.setViewport",
            context=self._context,
            viewport={"width": width, "height": height},
        )

    async def type_text(self, text: str) -> None:
        actions = []
        for character in text:
            value = "\ue007" if character == "\n" else character
            actions += [{"type": kind, "value": value} for kind in ("keyDown", "keyUp")]
        await self._perform({"type": "key", "id": "keyboard", "actions": actions})

    async def _press(self, x: float, y: float) -> None:
        actions = [
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        await self._perform({"type": "pointer", "id": "mouse", "actions": actions})

    async def _perform(self, source: dict[str, Any]) -> None:
        await self.link.command("input.performActions", context=self._context, actions=[source])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "log.entryAdded" and params["level"] == "error":
            self.problems.append(str(params["text"]))


@contextlib.asynccontextmanager
async def chromium(
    *, fake_audio: Path | None = None, grant_microphone: bool = True, flags: Sequence[str] = ()
) -> AsyncIterator[ChromiumPage]:
    """Chromium with a fake microphone that plays `fake_audio`, a WAV file, in a loop.

    Without `grant_microphone` the browser asks as it would ask a person.
    """
    arguments = [*_CHROMIUM_FLAGS, "--use-fake-device-for-media-stream", *flags]
    if grant_microphone:
        arguments.append("--use-fake-ui-for-media-stream")
    if fake_audio is not None:
        arguments.append(f"--use-file-for-fake-audio-capture={fake_audio}")
    program = _find(_CHROMIUM_NAMES, "chromium")
    with _home("chromium") as home:
        command = [program, *arguments, f"--user-data-dir={home}", "about:blank"]
        async with _running(command, home, _devtools_url) as link:
            try:
                yield await chromium_tab(link, await _first_page(link))
            finally:
                with contextlib.suppress(BrowserError, ConnectionError):
                    await link.command("Browser.close")


async def chromium_tab(link: Link, target: str) -> ChromiumPage:
    """Takes the lead of one tab."""
    reply = await link.command("Target.attachToTarget", targetId=target, flatten=True)
    page = ChromiumPage(link, reply["sessionId"])
    for domain in ("Page", "Runtime", "Log"):
        await page.command(f"{domain}.enable")
    await page.resize(1280, 1000)
    return page


@contextlib.asynccontextmanager
async def firefox(
    preferences: Mapping[str, bool | int | str] | None = None,
) -> AsyncIterator[FirefoxPage]:
    """Firefox with its built-in fake microphone (a tone) and no questions asked."""
    program = _find(_FIREFOX_NAMES, "firefox-esr")
    with _home("firefox") as home:
        _write_preferences(home, {**_FIREFOX_PREFERENCES, **(preferences or {})})
        command = [program, "--headless", "--no-remote", "--profile", str(home)]
        command += ["--remote-debugging-port", "0", "about:blank"]
        async with _running(command, home, _bidi_url) as link:
            await link.command("session.new", capabilities={})
            await link.command("session.subscribe", events=["log.entryAdded"])
            tree = await link.command("browsingContext.getTree")
            page = FirefoxPage(link, tree["contexts"][0]["context"])
            await page.resize(1280, 1000)
            try:
                yield page
            finally:
                with contextlib.suppress(BrowserError, ConnectionError):
                    await link.command("browser.close")


def _find(names: Sequence[str], package: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    raise BrowserError(f"{names[0]} is not installed; on Debian: apt-get install {package}")


@contextlib.contextmanager
def _home(name: str) -> Iterator[Path]:
    # A browser's last children may still write while the directory goes.
    prefix = f"earshot-{name}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as home:
        yield Path(home)


def _write_preferences(home: Path, preferences: Mapping[str, bool | int | str]) -> None:
    lines = (f"user_pref({json.dumps(k)}, {json.dumps(v)});\n" for k, v in preferences.items())
    (home / "user.js").write_text("".join(lines))


def _devtools_url(home: Path) -> str | None:
    """Where Chromium listens, once it does; likewise the next for Firefox."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        port, path = (home / "DevToolsActivePort").read_text().split("\n")[:2]
        return f"ws://127.0.0.1:{port}{path}"
    return None


def _bidi_url(home: Path) -> str | None:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        server = json.loads((home / "WebDriverBiDiServer.json").read_text())
        return f"ws://{server['ws_host']}:{server['ws_port']}/session"
    return None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _first_page(link: Link) -> str:
    targets = (await link.command("Target.getTargets"))["targetInfos"]
    pages = [str(target["targetId"]) for target in targets if target["type"] == "page"]
    if pages:
        return pages[0]
    return str((await link.command("Target.createTarget", url="about:blank"))["targetId"])


@contextlib.asynccontextmanager
async def _running(
    command: Sequence[str], home: Path, find_url: Callable[[Path], str | None]
) -> AsyncIterator[Link]:
    """The browser's process group, from its start to its certain end."""
    log = home / "browser.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "HOME": str(home), "MOZ_CRASHREPORTER_DISABLE": "1"},
            start_new_session=True,
        )
    try:
        url = await _await_url(process, find_url, home)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, max_msg_size=MAX_MESSAGE_BYTES) as socket,
        ):
            link = Link(socket)
            try:
                yield link
            finally:
                await link.close()
    finally:
        await _stop(process)


async def _await_url(
    process: asyncio.subprocess.Process, find_url: Callable[[Path], str | None], home: Path
) -> str:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.returncode is None:
        if url := find_url(home):
            return url
        await asyncio.sleep(0.05)
    state = "ended" if process.returncode is not None else "opened no debugging port"
    raise BrowserError(f"the browser {state}; it said:\n{_tail(home / 'browser.log')}")


async def _stop(process: asyncio.subprocess.Process) -> None:
    # Asked politely before; its children share its process group, which is ours to end.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
