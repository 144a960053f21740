"""Exports as ComfyUI writes them, small and odd, for the tests of the import."""

from __future__ import annotations

import io
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlplane.workflows import object_info
from controlplane.workflows.catalog import Catalog
from controlplane.workflows.importing import Imported, Wish, import_graph

FACTS = object_info.read(json.loads((Path(__file__).parent / "data" / "object_info_0.8.0.json").read_text()))
MODELS = Catalog.load(Path(__file__).parents[2] / "workflow_templates").models

Graph = dict[str, Any]


def node(class_type: str, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs, **({"_meta": {"title": title}} if title else {})}


def portrait() -> Graph:
    """ComfyUI's first graph: checkpoint, two texts, an empty latent, a sampler, Save Image."""
    return {
        "4": node("CheckpointLoaderSimple", ckpt_name="sketch_base.safetensors"),
        "5": node("EmptyLatentImage", width=128, height=96, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat in a hat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "3": node(
            "KSampler", model=["4", 0], positive=["6", 0], negative=["7", 0], latent_image=["5", 0], seed=156680208700,
            steps=20, cfg=8, sampler_name="euler", scheduler="normal", denoise=1,
        ),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="ComfyUI"),
    }  # fmt: skip


def with_lora(graph: Graph) -> Graph:
    """The same with a LoRA between the checkpoint and what uses it."""
    changed = deepcopy(graph)
    for one in changed.values():
        for name, value in one["inputs"].items():
            if value in (["4", 0], ["4", 1]):
                one["inputs"][name] = ["10", value[1]]
    changed["10"] = node(
        "LoraLoader", model=["4", 0], clip=["4", 1], lora_name="style.safetensors", strength_model=0.8, strength_clip=1
    )
    return changed


def high_resolution() -> Graph:
    """Two samplers in a row: the second one refines what the first one made, with a text of its own."""
    graph = portrait()
    graph["6b"] = node("CLIPTextEncode", text="fine details", clip=["4", 1])
    graph["11"] = node("LatentUpscaleBy", samples=["3", 0], upscale_method="nearest-exact", scale_by=1.5)
    graph["12"] = deepcopy(graph["3"])
    graph["12"]["inputs"] |= {"latent_image": ["11", 0], "positive": ["6b", 0], "denoise": 0.5, "steps": 12, "seed": 3}
    graph["8"]["inputs"]["samples"] = ["12", 0]
    return graph


def flux() -> Graph:
    """Flux's parts: a guider, noise, sigmas, a model and a text encoder from files of their own."""
    return {
        "1": node("UNETLoader", unet_name="flux1-dev.safetensors", weight_dtype="default"),
        "2": node("DualCLIPLoader", clip_name1="t5xxl_fp16.safetensors", clip_name2="clip_l.safetensors", type="flux"),
        "3": node("VAELoader", vae_name="ae.safetensors"),
        "4": node("CLIPTextEncode", text="a fox", clip=["2", 0]),
        "5": node("FluxGuidance", conditioning=["4", 0], guidance=3.5),
        "6": node("BasicGuider", model=["1", 0], conditioning=["5", 0]),
        "7": node("RandomNoise", noise_seed=219670278747233),
        "8": node("KSamplerSelect", sampler_name="euler"),
        "9": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=20, denoise=1),
        "10": node("EmptySD3LatentImage", width=1024, height=1024, batch_size=1),
        "11": node(
            "SamplerCustomAdvanced", noise=["7", 0], guider=["6", 0], sampler=["8", 0], sigmas=["9", 0],
            latent_image=["10", 0],
        ),
        "12": node("VAEDecode", samples=["11", 0], vae=["3", 0]),
        "13": node("SaveImage", images=["12", 0], filename_prefix="flux"),
    }  # fmt: skip


def video() -> Graph:
    """A picture that Stable Video Diffusion moves, saved by Video Helper Suite, whose classes no pod here has."""
    return {
        "1": node("ImageOnlyCheckpointLoader", ckpt_name="svd.safetensors"),
        "2": node("LoadImage", image="example.png"),
        "3": node(
            "SVD_img2vid_Conditioning", clip_vision=["1", 1], init_image=["2", 0], vae=["1", 2], width=1024, height=576,
            video_frames=14, motion_bucket_id=127, fps=6, augmentation_level=0,
        ),
        "4": node("VideoLinearCFGGuidance", model=["1", 0], min_cfg=1),
        "5": node(
            "KSampler", model=["4", 0], positive=["3", 0], negative=["3", 1], latent_image=["3", 2], seed=1, steps=20,
            cfg=2.5, sampler_name="euler", scheduler="karras", denoise=1,
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node(
            "VHS_VideoCombine", images=["6", 0], frame_rate=12, loop_count=0, filename_prefix="svd",
            format="video/h264-mp4", pingpong=False, save_output=True,
        ),
    }  # fmt: skip


def control_net() -> Graph:
    """Both sides of the conditioning go through one node, and a second picture steers the shape."""
    graph = portrait()
    graph["20"] = node("LoadImage", image="pose.png")
    graph["21"] = node("ControlNetLoader", control_net_name="openpose.safetensors")
    graph["22"] = node(
        "ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], control_net=["21", 0], image=["20", 0],
        strength=0.9, start_percent=0, end_percent=1,
    )  # fmt: skip
    graph["3"]["inputs"] |= {"positive": ["22", 0], "negative": ["22", 1]}
    return graph


def imported(graph: Any, *, facts: Any = FACTS, **wish: Any) -> Imported:
    return import_graph(graph, Wish(**{"name": "mine", **wish}), facts, MODELS)


def png_with(**texts: str) -> bytes:
    """A PNG that carries texts as ComfyUI writes them."""
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, "PNG", pnginfo=info)
    return target.getvalue()
