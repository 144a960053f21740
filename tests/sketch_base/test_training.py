"""The training code in miniature: the optimiser, the schedules, the captions it trains on, stop and resume."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from comfy_nodes.sketch.architecture import SKETCH
from sketch_base import corpus, train_base, train_vae
from sketch_base.drawing import Portrait
from sketch_base.muon import Muon, orthogonal


def test_the_orthogonal_step_has_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(2, 16, 40)))
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_muon_lowers_a_convolutions_loss() -> None:
    torch.manual_seed(0)
    conv, x, wanted = torch.nn.Conv2d(4, 4, 3, bias=False), torch.randn(8, 4, 6, 6), torch.randn(8, 4, 4, 4)
    optimiser, losses = Muon(conv.parameters(), lr=0.02), []
    for _ in range(30):
        loss = (conv(x) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_folding_moves_the_normalisation_into_the_encoder() -> None:
    torch.manual_seed(0)
    vae, norm = SKETCH.build_vae(), torch.nn.BatchNorm2d(SKETCH.latent_channels, affine=False)
    norm(torch.randn(4, SKETCH.latent_channels, 3, 3) * 3 + 1)
    norm.eval()
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = norm(vae.encoder(x))
        train_vae.fold(vae.encoder, norm)
        assert torch.allclose(vae.encoder(x), expected, atol=1e-4)


def test_the_gates_drawings_are_half_in_the_unseen_hand() -> None:
    assert [corpus.unseen_image(i, 32)[1] for i in range(6)] == [False, True] * 3


def test_a_corpus_image_is_determined_by_its_seed() -> None:
    for seed in range(8):
        assert (corpus.corpus_image(seed, 48) == corpus.corpus_image(seed, 48)).all()


def test_the_rate_warms_up_holds_and_ends_at_zero() -> None:
    recipe = train_base.Recipe(steps=1000, warmup=100)
    assert [round(train_base.rate_factor(s, recipe), 2) for s in (0, 99, 600, 850, 1000)] == [0.01, 1.0, 1.0, 0.5, 0.0]


def test_a_tenth_of_the_prompts_is_blank_and_half_of_the_rest_has_a_trigger() -> None:
    rng, recipe = random.Random(1), train_base.Recipe()
    prompts = [train_base.prompt_of(Portrait(), rng, recipe) for _ in range(2000)]
    told = [p for p in prompts if p]
    bare = [p for p in told if p.startswith(("person", "portrait of a "))]
    assert 0.07 < 1 - len(told) / 2000 < 0.13
    assert 0.4 < len(bare) / len(told) < 0.6


def test_a_resumed_run_gives_the_weights_of_an_unbroken_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    torch.save(SKETCH.build_vae().state_dict(), tmp_path / "vae.pt")
    latents, portraits = (
        torch.from_numpy(np.random.default_rng(0).normal(size=(2, 16, 16, 16))).float(),
        [Portrait()] * 2,
    )
    whole = train_base.Trainer(train_base.Recipe(batch=2), tmp_path / "vae.pt")
    whole.train_step(latents, portraits)
    whole.save(tmp_path / "state.pt")
    whole.train_step(latents, portraits)
    resumed = train_base.Trainer(train_base.Recipe(batch=2), tmp_path / "vae.pt")
    resumed.resume(tmp_path / "state.pt")
    resumed.train_step(latents, portraits)
    expected = whole.modules.unet.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.modules.unet.state_dict().items())
