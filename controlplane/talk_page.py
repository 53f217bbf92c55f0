"""The talk page's files, from controlplane/page, at / and at /page/."""

from __future__ import annotations

from pathlib import Path

from aiohttp import hdrs, web

PAGE_DIRECTORY = Path(__file__).parent / "page"

# Everything from this server alone, no inline script or style, never in a
# frame. Audio reaches the page as a MediaStream, which no directive governs.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "media-src 'self'",
        "connect-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # File names carry no hash, so browsers ask each time and are told 304.
    hdrs.CACHE_CONTROL: "no-cache",
}
# Not the machine's mime.types: a module of another type is not run.
_CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/vnd.microsoft.icon",
    ".woff2": "font/woff2",
    ".wav": "audio/wav",
    ".map": "application/json",
}


class TalkPage:
    """Serves the files that `directory` holds, and nothing that a link leads to."""

    def __init__(self, directory: Path = PAGE_DIRECTORY) -> None:
        self._directory = directory.resolve()

    def routes(self) -> list[web.RouteDef]:
        """The page names its files relative to /, where file names match and API paths do not."""
        return [
            web.get("/", self._index),
            web.get("/page/{name:.*}", self._file),
            web.get(r"/{name:[A-Za-z0-9_-]+\.[a-z0-9]+}", self._file),
        ]

    async def _index(self, request: web.Request) -> web.StreamResponse:
        return self._serve("index.html")

    async def _file(self, request: web.Request) -> web.StreamResponse:
        return self._serve(request.match_info["name"] or "index.html")

    def _serve(self, name: str) -> web.FileResponse:
        """404 for whatever is not a plain file of a known type below the directory."""
        content_type = _CONTENT_TYPES.get(Path(name).suffix)
        if content_type is None or "\0" in name:
            raise web.HTTPNotFound
        path = (self._directory / name).resolve()
        if not path.is_relative_to(self._directory) or not path.is_file():
            raise web.HTTPNotFound
        headers = {**_HEADERS, hdrs.CONTENT_TYPE: content_type}
        return web.FileResponse(path, headers=headers)
