"""Assets: list, read, mark, delete."""

from __future__ import annotations

from aiohttp import web

from controlplane.api.auth import authenticate
from controlplane.api.context import services
from controlplane.api.reading import json_body, query
from controlplane.api.replies import json_reply, page_reply
from controlplane.api.schemas.assets import AssetsQuery, PatchAsset
from controlplane.api.views import views


async def list_assets(request: web.Request) -> web.Response:
    """One page of assets, newest first."""
    wanted = query(request, AssetsQuery)
    page = await services(request).assets.list(authenticate(request).project_id, **wanted.model_dump())
    return page_reply([views(request).asset(asset) for asset in page.items], page.next_cursor)


async def get_asset(request: web.Request) -> web.Response:
    """One asset with what made it."""
    asset = await services(request).assets.get(authenticate(request).project_id, request.match_info["asset_id"])
    return json_reply(views(request).asset(asset))


async def patch_asset(request: web.Request) -> web.Response:
    """Mark an asset: favourite, rating, metadata."""
    project, asset_id = authenticate(request).project_id, request.match_info["asset_id"]
    change = (await json_body(request, PatchAsset)).model_dump(exclude_unset=True)
    return json_reply(views(request).asset(await services(request).assets.patch(project, asset_id, change)))


async def delete_asset(request: web.Request) -> web.Response:
    """Delete an asset and its file for good."""
    await services(request).assets.delete(authenticate(request).project_id, request.match_info["asset_id"])
    return web.Response(status=204)
