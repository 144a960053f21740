"""The sizes keep what ComfyUI's loader needs of an SDXL-shaped file."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from comfy_nodes.sketch.architecture import SKETCH, SketchModules


@pytest.fixture(scope="module")
def modules() -> SketchModules:
    return SKETCH.build()


def test_both_text_encoders_have_clips_rows_and_three_layers(modules: SketchModules) -> None:
    for encoder in (modules.text_encoder_1, modules.text_encoder_2):
        assert encoder.get_input_embeddings().weight.shape[0] == 49408
        assert encoder.config.num_hidden_layers >= 3
        assert encoder.config.max_position_embeddings == 77


def test_activations_and_padding_are_those_of_sdxl(modules: SketchModules) -> None:
    configs = [modules.text_encoder_1.config, modules.text_encoder_2.config]
    assert [(c.hidden_act, c.pad_token_id, c.eos_token_id) for c in configs] == [
        ("quick_gelu", 49407, 49407),
        ("gelu", 0, 49407),
    ]


def test_context_and_added_widths_follow_the_text_encoders(modules: SketchModules) -> None:
    hidden = [m.config.hidden_size for m in (modules.text_encoder_1, modules.text_encoder_2)]
    assert modules.unet.config.cross_attention_dim == sum(hidden)
    assert modules.unet.config.projection_class_embeddings_input_dim == hidden[1] + 6 * 256


def test_channels_are_multiples_of_the_norm_groups_and_of_a_head() -> None:
    assert all(channels % 32 == 0 and channels % SKETCH.head_channels == 0 for channels in SKETCH.unet_channels)


def test_the_heads_of_every_attention_have_the_declared_width(modules: SketchModules) -> None:
    widths = {m.to_q.out_features // m.heads for n, m in modules.unet.named_modules() if n.endswith(("attn1", "attn2"))}
    assert widths == {SKETCH.head_channels}


def test_the_autoencoder_is_a_taesd_with_eightfold_reduction(modules: SketchModules) -> None:
    with torch.no_grad():
        latents = modules.vae.encoder(torch.zeros(1, 3, 64, 64))
        assert latents.shape == (1, SKETCH.latent_channels, 8, 8)
        assert modules.vae.decoder(latents).shape == (1, 3, 64, 64)
    assert {m.out_channels for m in modules.vae.encoder.layers if isinstance(m, torch.nn.Conv2d)} == {64, 16}


def test_the_file_stays_under_thirty_megabytes_in_half_precision(modules: SketchModules) -> None:
    parts = (modules.unet, modules.text_encoder_1, modules.text_encoder_2, modules.vae)
    assert 2 * sum(p.numel() for part in parts for p in part.parameters()) < 29_800_000


def test_one_step_gives_a_latent_of_the_same_shape(modules: SketchModules) -> None:
    with torch.no_grad():
        ids = torch.full((1, 77), 49407)
        hidden = [m(ids, output_hidden_states=True) for m in (modules.text_encoder_1, modules.text_encoder_2)]
        context = torch.cat([h.hidden_states[-2] for h in hidden], dim=-1)
        added = {"text_embeds": hidden[1].text_embeds, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]])}
        latent = torch.zeros(1, 16, 16, 16)
        assert modules.unet(latent, 10, context, added_cond_kwargs=added).sample.shape == latent.shape


def test_importing_the_sizes_needs_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, comfy_nodes.sketch.architecture; print({'torch', 'diffusers', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
