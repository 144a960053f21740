"""Graphs that the embedded tests run."""

from __future__ import annotations

from typing import Any

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def painting(seed: int = 1, steps: int = 2, text: str = "a red cat", **sampler: Any) -> Graph:
    """Text to a saved picture of 64 x 64 pixels."""
    return {
        "1": node("CheckpointLoaderSimple", ckpt_name="sketch_base.safetensors"),
        "2": node("CLIPTextEncode", text=text, clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node(
            "KSampler",
            **{
                "model": ["1", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "denoise": 1.0,
                **sampler,
            },
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="painted"),
    }


def with_lora(graph: Graph, name: str, model: float, clip: float) -> Graph:
    """The same graph with a LoRA between the checkpoint and what uses it."""
    changed = {key: {**value, "inputs": dict(value["inputs"])} for key, value in graph.items()}
    for value in changed.values():
        for field, link in value["inputs"].items():
            if link in (["1", 0], ["1", 1]):
                value["inputs"][field] = ["8", link[1]]
    changed["8"] = node(
        "LoraLoader", model=["1", 0], clip=["1", 1], lora_name=name, strength_model=model, strength_clip=clip
    )
    return changed
