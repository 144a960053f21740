"""LoRA on the sketch base: names, exact change, exact undo."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comfy_nodes.sketch import keys, lora
from comfy_nodes.sketch.architecture import SKETCH

REPOSITORY = Path(__file__).resolve().parents[2]
TO_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
TEXT = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"


def state_for(modules, *names, rank=4, alpha=2.0, seed=3):
    torch.manual_seed(seed)
    known = lora.layers_by_name(modules)
    state = {}
    for name in names:
        weight = getattr(modules, known[name].part).get_submodule(known[name].path).weight
        state[name + lora.DOWN] = torch.randn(rank, *weight.shape[1:])
        state[name + lora.UP] = torch.randn(weight.shape[0], rank, *[1] * (weight.dim() - 2))
        state[name + lora.ALPHA] = torch.tensor(alpha)
    return state


def weight_of(modules, name):
    layer = lora.layers_by_name(modules)[name]
    return getattr(modules, layer.part).get_submodule(layer.path).weight


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ],
)
def test_names_are_kohyas(modules, name):
    assert name in lora.layers_by_name(modules)


def test_known_names_need_no_weights(modules, small):
    assert lora.known_names(small) == set(lora.layers_by_name(modules))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"unet_channels": (32, 64), "unet_transformers": (0, 1)},
        {"unet_channels": (32, 32, 64), "unet_transformers": (0, 2, 1), "unet_layers": 2},
    ],
)
def test_known_names_are_those_of_the_modules_that_would_be_built(sizes):
    architecture = dataclasses.replace(SKETCH, **sizes)
    with torch.device("meta"):
        built = architecture.build()
    assert lora.known_names(architecture) == set(lora.layers_by_name(built))


def test_known_names_need_neither_torch_nor_diffusers():
    code = (
        "import sys\n"
        "from comfy_nodes.sketch.lora import known_names\n"
        "assert known_names()\n"
        "print([name for name in ('torch', 'diffusers', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_linear_layer_gets_up_times_down_times_alpha_over_rank(modules):
    state = state_for(modules, TO_Q)
    moved = weight_of(lora.apply(modules, state, 0.5).modules, TO_Q)
    expected = weight_of(modules, TO_Q) + 0.5 * (2.0 / 4) * state[TO_Q + lora.UP] @ state[TO_Q + lora.DOWN]
    assert torch.allclose(moved, expected, atol=1e-5)


def test_a_convolution_computes_what_the_two_small_convolutions_compute(modules):
    state = state_for(modules, CONV)
    layer = lora.layers_by_name(modules)[CONV]
    patched = lora.apply(modules, state, 1.0).modules.unet.get_submodule(layer.path)
    original = modules.unet.get_submodule(layer.path)
    picture = torch.randn(1, original.in_channels, 6, 6)
    small = torch.nn.functional.conv2d(picture, state[CONV + lora.DOWN], padding=1)
    branch = torch.nn.functional.conv2d(small, state[CONV + lora.UP]) * (2.0 / 4)
    assert torch.allclose(patched(picture), original(picture) + branch, atol=1e-3)


def test_the_base_is_never_changed(modules):
    before = {name: tensor.clone() for name, tensor in modules.unet.state_dict().items()}
    lora.apply(modules, state_for(modules, TO_Q, CONV, TEXT), 1.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in modules.unet.state_dict().items())


def test_untouched_weights_are_shared_and_not_copied(modules):
    applied = lora.apply(modules, state_for(modules, TO_Q), 1.0)
    assert applied.modules.unet.conv_in.weight is modules.unet.conv_in.weight
    assert applied.modules.vae is modules.vae


def test_strength_zero_gives_the_very_same_modules(modules):
    applied = lora.apply(modules, state_for(modules, TO_Q, TEXT), 0.0)
    assert applied.modules is modules
    assert (applied.matched, applied.total) == (2, 2)


def test_the_clip_strength_is_separate(modules):
    applied = lora.apply(modules, state_for(modules, TO_Q, TEXT), 1.0, clip_strength=0.0)
    assert applied.modules.text_encoder_1 is modules.text_encoder_1
    assert applied.modules.unet is not modules.unet


def test_an_alien_lora_matches_nothing(modules):
    alien = {
        "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.randn(4, 8),
        "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": torch.randn(8, 4),
    }
    applied = lora.apply(modules, alien, 1.0)
    assert (applied.modules is modules, applied.matched, applied.total) == (True, 0, 1)


def test_a_layer_of_the_same_name_but_another_size_does_not_match(modules):
    state = {TO_Q + lora.DOWN: torch.randn(4, 640), TO_Q + lora.UP: torch.randn(640, 4)}
    assert lora.apply(modules, state, 1.0).matched == 0


def test_two_loras_add_up(modules):
    first, second = state_for(modules, TO_Q, seed=1), state_for(modules, TO_Q, seed=2)
    both = lora.apply(lora.apply(modules, first, 1.0).modules, second, 1.0).modules
    other = lora.apply(lora.apply(modules, second, 1.0).modules, first, 1.0).modules
    assert torch.allclose(weight_of(both, TO_Q), weight_of(other, TO_Q), atol=1e-5)


def test_every_trainable_part_has_its_prefix(modules):
    assert {layer.part for layer in lora.layers_by_name(modules).values()} == {keys.UNET, keys.TEXT_1, keys.TEXT_2}
