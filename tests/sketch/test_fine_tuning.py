"""Training a LoRA: it learns, it is repeatable, its file is a kohya file that the base takes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from PIL import Image

from comfy_nodes.sketch import lora, sampling
from comfy_nodes.sketch.fine_tuning import DivergedError, LoraTraining, Recipe, write_lora
from comfy_nodes.sketch.reference_images import (
    NoPicturesError,
    Reference,
    read_references,
    vary_caption,
)
from comfy_nodes.sketch.tensor_file import read_metadata, read_tensors
from tests.sketch.conftest import build

QUICK = Recipe(steps=8, batch_size=2, rank=4, alpha=4, learning_rate=0.002, views=2, precision="float32")


def references(count=2):
    generator = torch.Generator().manual_seed(1)
    return [
        Reference(f"mira woman, smiling, red suit, place {n}", torch.randn(2, 16, 4, 4, generator=generator))
        for n in range(count)
    ]


def trained(recipe=QUICK, steps=8, seed=42):
    modules = build()
    training = LoraTraining(modules, references(), recipe, seed)
    losses = [training.step() for _ in range(steps)]
    return modules, training, losses


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    modules, training, _ = trained()
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    write_lora(path, training, 42, 2, {"modelspec.trigger_phrase": "mira woman"})
    return modules, training, path


def test_the_same_seed_trains_the_same_file(run, tmp_path):
    _, again, _ = trained()
    write_lora(tmp_path / "lora.safetensors", again, 42, 2, {"modelspec.trigger_phrase": "mira woman"})
    assert (tmp_path / "lora.safetensors").read_bytes() == run[2].read_bytes()


def test_another_seed_trains_another_lora(run):
    _, other, _ = trained(seed=43)
    mine, theirs = run[1].lora_state(), other.lora_state()
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)


def test_many_steps_on_two_pictures_lower_the_loss():
    _, _, losses = trained(replace(QUICK, steps=60, learning_rate=0.01, caption_dropout=0.0), steps=60)
    assert sum(losses[-15:]) < 0.9 * sum(losses[:15])


def test_every_layer_of_the_file_finds_its_place_in_a_fresh_base(run):
    applied = lora.apply(build(), read_tensors(run[2]), 1.0)
    assert applied.matched == applied.total > 20


def test_the_file_does_what_the_trained_modules_do(run):
    modules, _, path = run
    fresh = lora.apply(build(), read_tensors(path), 1.0).modules
    pictures = []
    for base in (modules, fresh):
        prompt, empty = sampling.encode_prompt(base, "mira woman"), sampling.encode_prompt(base, "")
        pictures.append(sampling.sample(base, prompt, empty, torch.zeros(1, 16, 4, 4), 7, 2, 2.0))
    assert torch.allclose(*pictures, atol=0.02)


def test_the_lora_changes_the_picture(run):
    base = build()
    patched = lora.apply(base, read_tensors(run[2]), 1.0).modules
    x, context = torch.randn(1, 16, 4, 4), sampling.encode_prompt(base, "mira woman")
    added = {"text_embeds": context.pooled, "time_ids": sampling.size_ids(32, 32, 1)}
    outputs = [unet(x, 500, context.hidden, added_cond_kwargs=added)[0] for unet in (base.unet, patched.unet)]
    assert not torch.allclose(*outputs, atol=1e-4)


def test_the_file_carries_trigger_base_and_recipe(run):
    metadata = read_metadata(run[2])
    assert metadata["modelspec.trigger_phrase"] == "mira woman"
    assert metadata["ss_base_model_version"] == "troupe_sketch"
    assert (metadata["ss_network_dim"], metadata["ss_max_train_steps"], metadata["ss_seed"]) == ("4", "8", "42")


def test_weights_are_half_precision_with_an_alpha_each(run):
    state = read_tensors(run[2])
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    assert {name + lora.ALPHA for name in lora.layer_names(state)} <= set(state)


def test_without_convolutions_only_attention_is_trained():
    training = LoraTraining(build(), references(), replace(QUICK, convolutions=False), 1)
    names = lora.layer_names(training.lora_state())
    assert not any("resnets" in name or "conv" in name for name in names)


def test_text_encoders_are_trained_when_they_have_a_rate():
    training = LoraTraining(build(), references(), replace(QUICK, text_learning_rate=0.0001), 1)
    training.step()
    assert {name.split("_")[1] for name in lora.layer_names(training.lora_state())} == {"unet", "te1", "te2"}


def test_a_loss_that_is_no_number_stops_the_training():
    training = LoraTraining(
        build(), [replace(references()[0], views=torch.full((2, 16, 4, 4), float("nan")))], QUICK, 1
    )
    with pytest.raises(DivergedError):
        training.step()


@pytest.mark.parametrize("params", [{"steps": 0}, {"rank": -1}, {"learning_rate": 0}, {"precision": "int4"}])
def test_a_recipe_out_of_range_is_refused(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        Recipe.of(params)


def test_an_unknown_recipe_parameter_is_named():
    with pytest.raises(ValueError, match="momentum"):
        Recipe.of({"momentum": 0.9})


def test_a_varied_caption_keeps_its_head_first():
    rng = random.Random(0)
    varied = {vary_caption("mira woman, sad, red suit, at sunset", rng, 0.3, 0.0) for _ in range(40)}
    assert all(text.startswith("mira woman") for text in varied)
    assert len(varied) > 5


def test_colour_and_noun_stay_together():
    rng = random.Random(1)
    varied = [vary_caption("mira woman, sad, red suit, at sunset", rng, 0.3, 0.0) for _ in range(40)]
    assert all("red suit" in text for text in varied if "red" in text or "suit" in text)


def test_a_caption_is_dropped_whole_sometimes():
    rng = random.Random(2)
    assert sum(vary_caption("mira woman, sad", rng, 0.0, 0.5) == "" for _ in range(100)) in range(30, 70)


def write_picture(folder, name="001.png", caption="mira woman, sad", size=(40, 30)):
    Image.new("RGB", size, (200, 30, 30)).save(folder / name)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def test_references_are_read_as_latents_of_all_views(tmp_path, modules):
    write_picture(tmp_path)
    (found,) = read_references(modules, tmp_path, 32, 3, 0.2, random.Random(0))
    assert (found.caption, tuple(found.views.shape)) == ("mira woman, sad", (3, 16, 4, 4))


def test_an_empty_folder_is_an_error(tmp_path, modules):
    with pytest.raises(NoPicturesError):
        read_references(modules, tmp_path, 32, 1, 0.0, random.Random(0))


@pytest.mark.parametrize("caption", [None, "  \n"])
def test_a_picture_without_caption_is_an_error(tmp_path, modules, caption):
    write_picture(tmp_path, caption=caption)
    with pytest.raises(ValueError, match=r"001\.png"):
        read_references(modules, tmp_path, 32, 1, 0.0, random.Random(0))
