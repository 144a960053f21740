"""The key table: complete, one to one, and in the layout ComfyUI detects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from comfy_nodes.sketch import checkpoint, keys
from comfy_nodes.sketch.architecture import SKETCH

UNET = "model.diffusion_model."


def states(modules):
    return {part: getattr(modules, part).state_dict() for part in keys.PARTS}


@pytest.fixture(scope="module")
def full():
    """The key table of the real sizes, on modules without memory."""
    with torch.device("meta"):
        modules = SKETCH.build()
    return modules, keys.key_table(keys.layout_of(modules))


def test_every_module_tensor_has_exactly_one_checkpoint_key(full):
    modules, table = full
    named = [(entry.part, name) for entry in table for name in entry.names]
    assert sorted(named) == sorted((part, name) for part, state in states(modules).items() for name in state)


def test_no_checkpoint_key_comes_up_twice(full):
    _, table = full
    assert len({entry.key for entry in table}) == len(table)


def test_modules_to_file_to_modules_gives_every_tensor_back(modules):
    layout = keys.layout_of(modules)
    back = keys.from_checkpoint(layout, keys.to_checkpoint(layout, states(modules)))
    for part, state in states(modules).items():
        assert set(back[part]) == set(state)
        assert all(torch.equal(back[part][name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("transformers", [(1, 1), (0, 1), (0, 2)])
def test_the_table_follows_the_architecture(small, layers, transformers):
    with torch.device("meta"):
        modules = replace(small, unet_layers=layers, unet_transformers=transformers).build()
    table = keys.key_table(keys.layout_of(modules))
    assert {name for entry in table if entry.part == keys.UNET for name in entry.names} == set(
        modules.unet.state_dict()
    )


def test_a_missing_key_is_named(modules):
    layout = keys.layout_of(modules)
    tensors = keys.to_checkpoint(layout, states(modules))
    del tensors[f"{UNET}out.2.weight"]
    with pytest.raises(ValueError, match=r"out\.2\.weight"):
        keys.from_checkpoint(layout, tensors)


def test_an_unknown_key_is_named(modules):
    layout = keys.layout_of(modules)
    tensors = keys.to_checkpoint(layout, states(modules)) | {"lora_te9": torch.zeros(1)}
    with pytest.raises(ValueError, match="lora_te9"):
        keys.from_checkpoint(layout, tensors)


def test_query_key_and_value_are_packed_in_openclips_order(modules):
    packed = keys.to_checkpoint(keys.layout_of(modules), states(modules))[
        "conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight"
    ]
    attention = modules.text_encoder_2.text_model.encoder.layers[1].self_attn
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(packed, expected)


def test_the_text_projection_is_transposed(modules):
    tensors = keys.to_checkpoint(keys.layout_of(modules), states(modules))
    stored = tensors["conditioner.embedders.1.model.text_projection"]
    assert torch.equal(stored, modules.text_encoder_2.text_projection.weight.t())


# The shapes ComfyUI reads sizes from (reference: detect_unet_config, TAESD detection, CLIP detection).
@pytest.fixture(scope="module")
def stored_shapes(full):
    modules, _ = full
    return {key: tuple(tensor.shape) for key, tensor in checkpoint.checkpoint_tensors(modules).items()}


def test_comfyui_finds_the_unet_widths(stored_shapes):
    channels, width = SKETCH.latent_channels, SKETCH.unet_channels[0]
    assert stored_shapes[f"{UNET}input_blocks.0.0.weight"] == (width, channels, 3, 3)
    assert stored_shapes[f"{UNET}out.2.weight"] == (channels, width, 3, 3)
    assert stored_shapes[f"{UNET}label_emb.0.0.weight"] == (width * 4, SKETCH.added_channels)


def test_comfyui_finds_the_context_width_in_a_cross_attention(stored_shapes):
    key = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    assert stored_shapes[key] == (SKETCH.unet_channels[-1], SKETCH.context_channels)


def test_block_numbers_are_regular(stored_shapes):
    numbers = {int(key.split(".")[3]) for key in stored_shapes if key.startswith(f"{UNET}input_blocks.")}
    levels, layers = len(SKETCH.unet_channels), SKETCH.unet_layers
    assert numbers == set(range(levels * (layers + 1)))


def test_the_tiny_vae_is_detected_with_its_latent_channels(stored_shapes):
    assert stored_shapes["first_stage_model.taesd_decoder.1.weight"] == (64, SKETCH.latent_channels, 3, 3)


def test_both_embeddings_have_clips_rows(stored_shapes):
    assert stored_shapes["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"][0] == 49408
    assert stored_shapes["conditioner.embedders.1.model.token_embedding.weight"][0] == 49408


def test_both_text_encoders_have_the_layers_that_the_penultimate_state_needs(stored_shapes):
    for prefix in (
        "conditioner.embedders.0.transformer.text_model.encoder.layers",
        "conditioner.embedders.1.model.transformer.resblocks",
    ):
        assert any(key.startswith(f"{prefix}.2.") for key in stored_shapes)


def test_the_file_says_that_it_predicts_velocity(stored_shapes):
    assert (keys.V_PREDICTION in stored_shapes) == (SKETCH.prediction == "v_prediction")


def test_the_file_is_small_enough(stored_shapes):
    count = sum(torch.Size(shape).numel() for shape in stored_shapes.values())
    assert count * 2 + 200_000 <= checkpoint.MAX_BYTES
