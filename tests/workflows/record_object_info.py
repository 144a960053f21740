"""Records a reduced /object_info of a running ComfyUI: only the classes named here, only what an import reads of them.

Run by hand: ``python tests/workflows/record_object_info.py http://127.0.0.1:8188 FILE``
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

CLASSES = (
    "CheckpointLoaderSimple", "ImageOnlyCheckpointLoader", "UNETLoader", "CLIPLoader", "DualCLIPLoader", "VAELoader",
    "LoraLoader", "LoraLoaderModelOnly", "CLIPSetLastLayer", "CLIPTextEncode", "CLIPTextEncodeSDXL",
    "CLIPTextEncodeFlux", "ConditioningCombine", "ConditioningConcat", "ConditioningZeroOut", "FluxGuidance",
    "ControlNetLoader", "ControlNetApply", "ControlNetApplyAdvanced", "EmptyLatentImage", "EmptySD3LatentImage",
    "EmptyHunyuanLatentVideo", "LatentUpscale", "LatentUpscaleBy", "KSampler", "KSamplerAdvanced", "SamplerCustom",
    "SamplerCustomAdvanced", "RandomNoise", "BasicGuider", "CFGGuider", "BasicScheduler", "KSamplerSelect",
    "ModelSamplingFlux", "VAEDecode", "VAEEncode", "LoadImage", "LoadImageMask", "ImageScale", "SaveImage",
    "PreviewImage", "SaveAnimatedWEBP", "SaveWEBM", "CreateVideo", "SaveVideo", "SVD_img2vid_Conditioning",
    "VideoLinearCFGGuidance", "PrimitiveInt", "PrimitiveFloat", "PrimitiveString", "PrimitiveStringMultiline",
    "StringConcatenate", "ImageScaleBy", "UpscaleModelLoader", "ImageUpscaleWithModel", "CLIPVisionLoader",
    "PreviewAny", "SaveLatent", "CharacterLoRALoader", "S3Save", "PromptTravelSampler",
)  # fmt: skip
FACTS = ("default", "min", "max", "step", "multiline", "image_upload", "forceInput")
FILE_FIELDS = ("ckpt_name", "lora_name", "vae_name", "unet_name", "control_net_name", "model_name", "image",
               "clip_name", "clip_name1", "clip_name2")  # fmt: skip


def reduced(entry: dict[str, Any]) -> dict[str, Any]:
    """What an import reads of one class; names of files on the recorded machine are left out."""
    inputs = {
        group: {name: _input(name, spec) for name, spec in (entry["input"].get(group) or {}).items()}
        for group in ("required", "optional")
    }
    return {
        "input": inputs,
        "output": [kind if isinstance(kind, str) else "COMBO" for kind in entry["output"]],
        "output_name": list(entry["output_name"]),
        "output_node": bool(entry["output_node"]),
    }


def _input(name: str, spec: list[Any]) -> list[Any]:
    kind = spec[0]
    about = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
    kept = {key: about[key] for key in FACTS if key in about}
    if kind == "COMBO":
        kind = about.get("options", [])
        return ["COMBO", {**kept, "options": [] if name in FILE_FIELDS else kind}]
    return [[] if isinstance(kind, list) and name in FILE_FIELDS else kind, kept]


def main(url: str, target: str) -> None:
    """Write the reduced answer of ``url`` to ``target``."""
    with urllib.request.urlopen(f"{url.rstrip('/')}/object_info", timeout=120) as answer:
        everything = json.load(answer)
    found = {name: reduced(everything[name]) for name in CLASSES if name in everything}
    Path(target).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(found)} classes; absent: {sorted(set(CLASSES) - set(found))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
