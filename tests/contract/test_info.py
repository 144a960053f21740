"""What a pod says about itself."""

from __future__ import annotations

import pytest

from .client import Client
from .recordings import recording

INTERFACES = {
    "CheckpointLoaderSimple": (["ckpt_name"], ["MODEL", "CLIP", "VAE"]),
    "CLIPTextEncode": (["text", "clip"], ["CONDITIONING"]),
    "EmptyLatentImage": (["width", "height", "batch_size"], ["LATENT"]),
    "KSampler": (
        ["model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image"],
        ["LATENT"],
    ),
    "VAEDecode": (["samples", "vae"], ["IMAGE"]),
    "VAEEncode": (["pixels", "vae"], ["LATENT"]),
    "LoadImage": (["image"], ["IMAGE", "MASK"]),
    "ImageScale": (["image", "upscale_method", "width", "height", "crop"], ["IMAGE"]),
    "RepeatLatentBatch": (["samples", "amount"], ["LATENT"]),
    "LoraLoader": (["model", "clip", "lora_name", "strength_model", "strength_clip"], ["MODEL", "CLIP"]),
    "SaveImage": (["images", "filename_prefix"], []),
    "PreviewImage": (["images"], []),
    "EmptyImage": (["width", "height", "batch_size", "color"], ["IMAGE"]),
}


async def test_every_route_is_also_under_api(client: Client) -> None:
    assert await client.call("GET", "/api/queue") == (200, {"queue_running": [], "queue_pending": []})


async def test_system_stats_names_version_and_devices(client: Client) -> None:
    _, stats = await client.call("GET", "/system_stats")
    assert {"comfyui_version", "os", "ram_total", "python_version"} <= set(stats["system"])
    assert {"name", "type", "index", "vram_total", "vram_free"} <= set(stats["devices"][0])


async def test_a_node_class_describes_itself_as_recorded(client: Client) -> None:
    expected = recording("20").lines[-1]["response"]["SaveImage"]
    _, info = await client.call("GET", "/object_info/SaveImage")
    assert sorted(info["SaveImage"]) == sorted(expected)
    fields = ("input_order", "output", "output_is_list", "output_name", "name", "output_node")
    assert [info["SaveImage"][field] for field in fields] == [expected[field] for field in fields]


async def test_an_unknown_class_is_an_empty_object(client: Client) -> None:
    assert await client.call("GET", "/object_info/Nope") == (200, {})


async def test_features_announce_preview_metadata_and_upload_size(client: Client) -> None:
    _, features = await client.call("GET", "/features")
    assert (features["supports_preview_metadata"], features["max_upload_size"]) == (True, 104857600)


async def test_models_lists_the_kinds(client: Client) -> None:
    _, kinds = await client.call("GET", "/models")
    assert {"checkpoints", "loras"} <= set(kinds)


async def test_models_of_a_kind_are_a_list_of_names(client: Client) -> None:
    status, names = await client.call("GET", "/models/checkpoints")
    assert (status, all(name.endswith(".safetensors") for name in names)) == (200, True)


async def test_an_unknown_kind_of_model_is_404(client: Client) -> None:
    status, _ = await client.call("GET", "/models/nope")
    assert status == 404


@pytest.mark.parametrize(
    "name",
    sorted(INTERFACES),
)
async def test_a_class_of_the_templates_has_comfyuis_inputs_and_outputs(client: Client, name: str) -> None:
    _, info = await client.call("GET", f"/object_info/{name}")
    found = info[name]
    inputs, outputs = INTERFACES[name]
    assert (found["input_order"]["required"][: len(inputs)], found["output"]) == (inputs, outputs)
