"""The pictures: same seed same bytes, LoRAs that come and go exactly, frames that share one still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from comfy_nodes.sketch import lora
from pod_images.embedded import painting as model_work
from pod_images.embedded.models import Model
from pod_images.embedded.pod import Pod

from .conftest import Runner
from .graphs import node, painting, with_lora


def pixels(pod: Pod, entry: dict[str, Any], output: str = "7") -> bytes:
    assert entry["status"]["status_str"] == "success", entry["status"]["messages"][-1]
    image = entry["outputs"][output]["images"][0]
    with Image.open(pod.folders.inside(image["type"], image["subfolder"], image["filename"])) as opened:
        return opened.convert("RGB").tobytes()


def a_lora(pod: Pod, name: str, known: bool = True) -> str:
    """Writes a LoRA of rank 2 over every attention query of the base, or over names that no base has."""
    model, _, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    torch.manual_seed(5)
    tensors = {}
    for layer_name, layer in lora.layers_by_name(model.modules).items():
        if layer_name.endswith("to_q") or layer_name.endswith("q_proj"):
            weight = getattr(model.modules, layer.part).get_submodule(layer.path).weight
            key = layer_name if known else f"alien_{layer_name}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1])
            tensors[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2)
    folder = pod.folders.data / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / name)
    return name


def test_the_same_seed_gives_the_same_pixels(pod: Pod, run: Runner) -> None:
    first = pixels(pod, run(painting(seed=11)))
    run(painting(seed=12))
    assert pixels(pod, run(painting(seed=11))) == first


def test_another_seed_gives_another_picture(pod: Pod, run: Runner) -> None:
    assert pixels(pod, run(painting(seed=13))) != pixels(pod, run(painting(seed=14)))


def test_another_prompt_gives_another_picture(pod: Pod, run: Runner) -> None:
    assert pixels(pod, run(painting(text="a woman"))) != pixels(pod, run(painting(text="a robot")))


def test_a_seed_of_64_bits_is_taken(pod: Pod, run: Runner) -> None:
    assert pixels(pod, run(painting(seed=2**64 - 1)))


def test_a_lora_changes_the_picture(pod: Pod, run: Runner) -> None:
    name = a_lora(pod, "some.safetensors")
    assert pixels(pod, run(with_lora(painting(), name, 1, 1))) != pixels(pod, run(painting()))


def test_after_a_lora_the_base_paints_as_before(pod: Pod, run: Runner) -> None:
    before = pixels(pod, run(painting()))
    run(with_lora(painting(), a_lora(pod, "some.safetensors"), 1, 1))
    run({"1": painting()["4"], "2": node("PreviewImage", images=["3", 0]), "3": empty(1)})
    assert pixels(pod, run(painting())) == before


def test_strength_0_paints_the_same_bytes_as_no_lora(pod: Pod, run: Runner) -> None:
    name = a_lora(pod, "some.safetensors")
    assert pixels(pod, run(with_lora(painting(), name, 0, 0))) == pixels(pod, run(painting()))


def test_strength_0_gives_back_the_very_same_objects(pod: Pod) -> None:
    model, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    patched, patched_clip, _, _ = pod.host.apply_lora(model, clip, _state(pod), 0)
    assert (patched is model, patched_clip is clip) == (True, True)


def test_matched_layers_are_counted(pod: Pod) -> None:
    model, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    _, _, matched, total = pod.host.apply_lora(model, clip, _state(pod), 1)
    assert (matched == total, matched > 3) == (True, True)


def test_an_alien_lora_matches_nothing(pod: Pod) -> None:
    model, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    alien = {f"alien_{key}": value for key, value in _state(pod).items()}
    patched, _, matched, total = pod.host.apply_lora(model, clip, alien, 1)
    assert (patched is model, matched, total > 0) == (True, 0, True)


def _state(pod: Pod) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(pod.folders.data / "models" / "loras" / a_lora(pod, "state.safetensors"))


def test_a_model_and_its_text_encoders_take_different_strengths(pod: Pod, run: Runner) -> None:
    name = a_lora(pod, "some.safetensors")
    only_model = pixels(pod, run(with_lora(painting(), name, 1, 0)))
    only_text = pixels(pod, run(with_lora(painting(), name, 0, 1)))
    assert only_model != only_text


def test_a_batch_is_painted_as_one(pod: Pod, run: Runner) -> None:
    graph = painting()
    graph["4"]["inputs"]["batch_size"] = 3
    assert len(run(graph)["outputs"]["7"]["images"]) == 3


def test_a_picture_goes_through_the_vae_at_its_size(pod: Pod, run: Runner) -> None:
    graph = {
        "1": painting()["1"],
        "2": empty(0x4080C0, width=50, height=41),
        "3": node("VAEEncode", pixels=["2", 0], vae=["1", 2]),
        "4": node("RepeatLatentBatch", samples=["3", 0], amount=2),
        "6": node("VAEDecode", samples=["4", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="vae"),
    }
    entry = run(graph)
    image = entry["outputs"]["7"]["images"]
    with Image.open(pod.folders.inside("output", "", image[0]["filename"])) as opened:
        assert (len(image), opened.size) == (2, (48, 40))


def test_a_latent_of_other_channels_is_refused(pod: Pod) -> None:
    model, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    prompt = model_work.encode_text(clip, "x")
    with pytest.raises(ValueError, match="4 channels"):
        model_work.sample(model, 1, 1, 1.0, prompt, prompt, {"samples": torch.ones(1, 4, 8, 8)}, 1.0)


def test_a_blend_is_its_ends_at_0_and_1(pod: Pod) -> None:
    _, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    first, second = model_work.encode_text(clip, "a smiling man"), model_work.encode_text(clip, "an angry man")
    ends = [pod.host.blend(first, second, weight)[0][0] for weight in (0.0, 1.0)]
    assert (torch.equal(ends[0], first[0][0]), torch.equal(ends[1], second[0][0])) == (True, True)


def test_conditioning_has_comfyuis_shape(pod: Pod) -> None:
    _, clip, _ = pod.host.checkpoints.load(pod.host.checkpoint_path("sketch_base.safetensors"))
    ((hidden, extra),) = model_work.encode_text(clip, "a man")
    assert (tuple(hidden.shape[:2]), extra["pooled_output"].dim()) == ((1, 77), 2)


def test_prompt_travel_keeps_the_still_as_its_first_frame(pod: Pod, run: Runner) -> None:
    graph = painting()
    graph["9"] = node("CLIPTextEncode", text="a red cat, smiling", clip=["1", 1])
    graph["10"] = node(
        "PromptTravelSampler", model=["1", 0], positive_from=["2", 0], positive_to=["9", 0], negative=["3", 0],
        latent=["5", 0], frames=4, seed=1, steps=2, cfg=2.0, denoise=0.5,
    )  # fmt: skip
    graph["6"]["inputs"]["samples"] = ["10", 0]
    still = pixels(pod, run(painting()))
    entry = run(graph)
    assert (len(entry["outputs"]["7"]["images"]), pixels(pod, entry)) == (4, still)


def test_two_checkpoints_of_one_file_are_loaded_once(pod: Pod) -> None:
    path = pod.host.checkpoint_path("sketch_base.safetensors")
    first, second = pod.host.checkpoints.load(path)[0], pod.host.checkpoints.load(path)[0]
    assert isinstance(first, Model)
    assert first.modules is second.modules


def test_a_tiny_checkpoint_is_the_same_for_everybody(tmp_path: Path) -> None:
    from pod_images.embedded.models import write_tiny_checkpoint

    for name in ("a", "b"):
        write_tiny_checkpoint(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def empty(colour: int, width: int = 32, height: int = 32) -> dict[str, Any]:
    return node("EmptyImage", width=width, height=height, batch_size=1, color=colour)
