"""PromptTravelSampler: a moving picture from one still, by walking the prompt there and back with the noise held."""

from __future__ import annotations

import math
from typing import Any

from .boundary import contained
from .host import Conditioning, Latent, Model, current_host


class PromptTravelSampler:
    """A V1 node: LATENT of `frames` pictures whose first is the given latent, unchanged."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "travel"
    CATEGORY = "Troupe"
    DESCRIPTION = (
        "Image to image over one latent, frame by frame, with the same noise and a prompt that travels to "
        "`positive_to` and back. The motion is the model's own answer to the prompt, not a video model's."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "positive_from": ("CONDITIONING",),
                "positive_to": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent": ("LATENT",),
                "frames": ("INT", {"default": 16, "min": 2, "max": 128}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "steps": ("INT", {"default": 12, "min": 1, "max": 10_000}),
                "cfg": ("FLOAT", {"default": 4.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "denoise": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    @contained
    def travel(
        self,
        model: Model,
        positive_from: Conditioning,
        positive_to: Conditioning,
        negative: Conditioning,
        latent: Latent,
        frames: int,
        seed: int,
        steps: int,
        cfg: float,
        denoise: float,
    ) -> tuple[Latent]:
        """Samples [frames, C, h, w] on the device of the given latent. Raises the host's interrupt exception."""
        import torch

        host = current_host()
        still = {**latent, "samples": latent["samples"][:1]}
        total = (frames - 1) * steps
        samples = [still["samples"]]
        for frame in range(1, frames):
            positive = host.blend(positive_from, positive_to, travelled(frame, frames))

            # Sampling may run fewer steps than asked (denoise < 1): the frame's share of the bar is what counts.
            def told(step: int, steps_run: int, frame: int = frame) -> None:
                done = (frame - 1) * steps + round(steps * step / max(1, steps_run))
                host.progress(min(done, total), total)

            painted = host.sample(model, seed, steps, cfg, positive, negative, still, denoise, told)
            samples.append(painted["samples"].to(still["samples"]))
            host.progress(frame * steps, total)
        return ({"samples": torch.cat(samples)},)


def travelled(frame: int, frames: int) -> float:
    """How far the prompt has travelled at a frame: 0 at the first, 1 half-way, smoothly back, so that it loops."""
    return (1 - math.cos(2 * math.pi * frame / frames)) / 2
