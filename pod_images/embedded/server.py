"""The web application of one pod: every route with and without /api, the token check, the websocket."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from ..bearer import bearer_check
from .keys import POD
from .pod import Pod
from .routes import files, info, prompts
from .same_site import same_site

MAX_REQUEST_BYTES = 104857600

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/prompt", prompts.get_prompt),
    ("POST", "/prompt", prompts.post_prompt),
    ("GET", "/queue", prompts.get_queue),
    ("POST", "/queue", prompts.post_queue),
    ("POST", "/interrupt", prompts.post_interrupt),
    ("GET", "/history", prompts.get_history),
    ("GET", "/history/{prompt_id}", prompts.get_history_entry),
    ("POST", "/history", prompts.post_history),
    ("POST", "/free", prompts.post_free),
    ("GET", "/view", files.view),
    ("POST", "/upload/image", files.upload_image),
    ("GET", "/object_info", info.object_info),
    ("GET", "/object_info/{name}", info.object_info_class),
    ("GET", "/system_stats", info.system_stats),
    ("GET", "/models", info.models),
    ("GET", "/models/{kind}", info.models_of_kind),
    ("GET", "/features", info.features),
    ("GET", "/troupe/state", info.state),
    ("GET", "/troupe/uploads/{prompt_id}", info.uploads),
)


async def websocket(request: web.Request) -> web.StreamResponse:
    pod = request.app[POD]
    return await pod.hub.serve(request, pod.queue.remaining())


async def _close_sockets(app: web.Application) -> None:
    await app[POD].hub.close()


def build_app(pod: Pod) -> web.Application:
    """The application that serves a pod; the pod itself is started and stopped by the caller."""
    app = web.Application(middlewares=[bearer_check(pod.token), same_site], client_max_size=MAX_REQUEST_BYTES)
    app[POD] = pod
    for prefix in ("", "/api"):
        for method, path, handler in (*ROUTES, ("GET", "/ws", websocket)):
            app.router.add_route(method, prefix + path, handler)
    app.on_shutdown.append(_close_sockets)
    return app
