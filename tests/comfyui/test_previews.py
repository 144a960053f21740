"""Previews on a real ComfyUI: a prompt that asks for them gets pictures, any other gets none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from controlplane.comfy.client import open_session
from controlplane.ports import PodAddress, Work
from controlplane.providers.comfyui import ComfyUIProvider
from controlplane.services.previews import as_jpeg
from controlplane.storage.local import LocalStore

from .graphs import picture
from .server import ComfyUI


class WallClock:
    def now(self) -> float:
        return time.time()


@pytest.mark.parametrize("wanted", [True, False])
async def test_previews_come_where_they_are_asked_for(comfyui: ComfyUI, tmp_path: Path, wanted: bool) -> None:
    blobs = LocalStore(tmp_path, "http://127.0.0.1:1/files", "key", WallClock())
    async with open_session() as session:
        provider = ComfyUIProvider(session, blobs)
        address = PodAddress("pod", comfyui.address, "", "comfyui")
        graph = picture("a red cat", seed=int(wanted), steps=40, save="SaveImage")
        work = Work(f"previews-{wanted}", provider.client_id(address), address, graph, previews=wanted)
        await provider.start(work)
        updates = [update async for update in provider.follow(work)]
        await provider.close()
    pictures = [as_jpeg(update.picture) for update in updates if update.kind == "preview"]
    assert (updates[-1].kind, bool(pictures)) == ("succeeded", wanted)
