"""The control plane's HTTP application: its routes and what all of them share."""

from __future__ import annotations

from aiohttp import web

from controlplane.admin import AdminApi
from controlplane.faces.realtime import RealtimeFace
from controlplane.guard import OpenRequests, access_middleware, error_middleware, response_headers
from controlplane.talk_page import TalkPage


def make_app(
    api_key: str,
    realtime: RealtimeFace,
    admin: AdminApi,
    page: TalkPage,
    open_requests: OpenRequests,
) -> web.Application:
    """Nothing here has state; that is in shared memory and in `Calls`."""
    app = web.Application(
        middlewares=[open_requests.middleware(), error_middleware(), access_middleware(api_key)]
    )
    app.on_response_prepare.append(response_headers(api_key))
    app.add_routes([*realtime.routes(), *admin.routes(), *page.routes()])
    return app
