"""The sampler: deterministic by seed, ComfyUI's schedule, true conditioning."""

from __future__ import annotations

import pytest
import torch

from comfy_nodes.sketch import sampling


@pytest.fixture(scope="module")
def prompts(modules):
    return sampling.encode_prompt(modules, "woman, red hoodie"), sampling.encode_prompt(modules, "")


def picture(modules, prompts, seed=1, **more):
    latent = more.pop("latent", sampling.empty_latent(modules, 32, 32))
    return sampling.sample(modules, *prompts, latent, seed, **({"steps": 3, "cfg": 3.0} | more))


def test_the_same_seed_gives_the_same_bytes(modules, prompts):
    assert torch.equal(picture(modules, prompts), picture(modules, prompts))


def test_another_seed_gives_another_picture(modules, prompts):
    assert not torch.equal(picture(modules, prompts), picture(modules, prompts, seed=2))


def test_the_global_random_state_does_not_matter(modules, prompts):
    first = picture(modules, prompts)
    torch.manual_seed(99)
    assert torch.equal(first, picture(modules, prompts))


def test_another_prompt_gives_another_picture(modules, prompts):
    other = (sampling.encode_prompt(modules, "robot, blue suit"), prompts[1])
    assert not torch.equal(picture(modules, prompts), picture(modules, other))


def test_denoise_zero_returns_the_latent(modules, prompts):
    latent = torch.randn(1, 16, 4, 4)
    assert torch.equal(picture(modules, prompts, latent=latent, denoise=0.0), latent)


def test_a_little_denoise_stays_nearer_to_the_latent_than_much(modules, prompts):
    latent = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(5))
    little, much = (picture(modules, prompts, latent=latent, denoise=share, cfg=1.0) for share in (0.1, 0.9))
    assert (little - latent).norm() < (much - latent).norm()


def test_every_step_is_reported(modules, prompts):
    seen = []
    picture(modules, prompts, callback=lambda step, total, clean: seen.append((step, total, tuple(clean.shape))))
    assert seen == [(1, 3, (1, 16, 4, 4)), (2, 3, (1, 16, 4, 4)), (3, 3, (1, 16, 4, 4))]


def test_an_exception_in_the_callback_ends_the_sampling(modules, prompts):
    def stop(step, total, clean):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        picture(modules, prompts, callback=stop)


def test_guidance_of_one_asks_only_for_the_prompt(modules, prompts):
    widths = []
    handle = modules.unet.register_forward_pre_hook(lambda module, given: widths.append(len(given[0])))
    try:
        picture(modules, prompts, cfg=1.0)
    finally:
        handle.remove()
    assert set(widths) == {1}


def test_the_schedule_falls_from_the_noisiest_level_to_zero(modules):
    sigmas = [sigma for sigma, _ in sampling.sigma_steps(modules.scheduler_config, 8, 1.0)]
    assert sigmas == sorted(sigmas, reverse=True)
    assert (round(sigmas[0], 2), sigmas[-1]) == (14.61, 0.0)


def test_partial_denoise_is_the_tail_of_a_longer_schedule(modules):
    tail = sampling.sigma_steps(modules.scheduler_config, 4, 0.5)
    assert tail == sampling.sigma_steps(modules.scheduler_config, 8, 1.0)[-5:]


def test_velocity_prediction_finds_the_clean_latent(modules, prompts):
    """A network that answers with the true velocity must be read as the clean picture, at any noise."""
    clean, noise, sigma = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4), 1.7
    root = (1 + sigma * sigma) ** 0.5
    denoiser = sampling._Denoiser(modules, *prompts, clean, 1.0)
    denoiser._unet = lambda *args, **more: (noise / root - clean * (sigma / root),)
    assert torch.allclose(denoiser(clean + sigma * noise, sigma, 500.0), clean, atol=1e-5)


def test_prompts_are_padded_as_sdxl_pads(modules):
    first, second = sampling.tokenize(modules, ["man"])
    assert (first.shape, int(first[0, 0]), int(first[0, -1]), int(second[0, -1])) == ((1, 77), 49406, 49407, 0)


def test_a_long_prompt_is_cut_and_keeps_its_end_token(modules):
    first, _ = sampling.tokenize(modules, ["a very long prompt " * 60])
    assert (first.shape[1], int(first[0, -1])) == (77, 49407)


def test_conditioning_has_both_encoders_side_by_side(modules, small, prompts):
    assert prompts[0].hidden.shape == (1, 77, small.context_channels)
    assert prompts[0].pooled.shape == (1, small.text_2.hidden)


def test_pictures_come_out_eight_times_as_large_as_latents(modules):
    pixels = sampling.decode(modules, torch.randn(2, 16, 4, 6))
    assert pixels.shape == (2, 32, 48, 3)
    assert (float(pixels.min()) >= 0, float(pixels.max()) <= 1) == (True, True)


def test_odd_sides_are_cut_to_multiples_of_eight(modules):
    assert sampling.encode(modules, torch.rand(1, 37, 50, 3)).shape == (1, 16, 4, 6)
