"""Graphs of the sketch base for these tests, in ComfyUI's API format, and a client that runs them and waits."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from typing import Any

from .server import ComfyUI

Graph = dict[str, dict[str, Any]]
CHECKPOINT = "sketch_base.safetensors"
WAIT_SECONDS = 120


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def picture(
    prompt: str, seed: int = 7, steps: int = 6, save: str = "S3Save", character: dict[str, Any] | None = None
) -> Graph:
    """One 128 x 128 picture; `character` are the inputs of a CharacterLoRALoader behind the checkpoint."""
    source = "1" if character is None else "9"
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT),
        "2": node("CLIPTextEncode", text=prompt, clip=[source, 1]),
        "3": node("CLIPTextEncode", text="", clip=[source, 1]),
        "4": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "5": node(
            "KSampler", seed=seed, steps=steps, cfg=4.0, sampler_name="euler", scheduler="normal", denoise=1.0,
            model=[source, 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0],
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("S3Save", images=["6", 0], name="picture", format="png"),
    }  # fmt: skip
    if save == "SaveImage":
        graph["7"] = node("SaveImage", images=["6", 0], filename_prefix="picture")
    if character is not None:
        graph["9"] = node("CharacterLoRALoader", model=["1", 0], clip=["1", 1], **character)
    return graph


def call(comfyui: ComfyUI, path: str, body: Any = None) -> Any:
    """The JSON answer of GET, or of POST with a body; None for an empty one."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(comfyui.address + path, data=data), timeout=30) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def submit(comfyui: ComfyUI, graph: Graph, prompt_id: str = "") -> str:
    prompt_id = prompt_id or str(uuid.uuid4())
    body = {"prompt": graph, "prompt_id": prompt_id, "client_id": "tests"}
    try:
        assert call(comfyui, "/prompt", body)["node_errors"] == {}
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read().decode()) from error
    return prompt_id


def ended(comfyui: ComfyUI, prompt_id: str) -> dict[str, Any]:
    """The history entry of a prompt, once it has one."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        history = call(comfyui, f"/history/{prompt_id}")
        if prompt_id in history:
            entry: dict[str, Any] = history[prompt_id]
            return entry
        time.sleep(0.05)
    raise TimeoutError(f"{prompt_id} did not end:\n{comfyui.log_tail()}")


def run(comfyui: ComfyUI, graph: Graph, prompt_id: str = "") -> dict[str, Any]:
    """The outputs by node id. Raises AssertionError with the node's words where it failed."""
    entry = ended(comfyui, submit(comfyui, graph, prompt_id))
    assert entry["status"]["status_str"] == "success", words_of(entry)
    outputs: dict[str, Any] = entry["outputs"]
    return outputs


def words_of(entry: dict[str, Any]) -> str:
    """What a failed prompt said."""
    kind, said = entry["status"]["messages"][-1]
    assert kind == "execution_error", entry["status"]
    text: str = said["exception_message"]
    return text


def saved_files(comfyui: ComfyUI, outputs: dict[str, Any], save_node: str = "7") -> list[bytes]:
    """The bytes of the files that a node wrote to output/."""
    folder = comfyui.base / "output"
    return [(folder / file["subfolder"] / file["filename"]).read_bytes() for file in outputs[save_node]["images"]]
