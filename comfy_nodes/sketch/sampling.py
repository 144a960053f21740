"""The one sampler of the sketch base: prompt to conditioning, noise to latent, latent to picture and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .architecture import SketchModules

# step (from 1), all steps, the picture as the model sees it now (latents); an exception it raises ends the sampling.
StepCallback = Callable[[int, int, "torch.Tensor"], None]

LATENT_SCALE = 8  # pixels per latent cell on each side
DEFAULT_STEPS, DEFAULT_CFG = 20, 4.0


@dataclass(frozen=True)
class Conditioning:
    """A prompt as the U-Net reads it: hidden (N, 77, context) and pooled (N, hidden of the second encoder)."""

    hidden: torch.Tensor
    pooled: torch.Tensor


# --- prompts -------------------------------------------------------------------------------------------------------


def tokenize(modules: SketchModules, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (N, 77) for both encoders: cut at 77, padded as SDXL pads (end token for one, 0 for the other)."""
    import torch

    rows = [
        modules.tokenizer(text, truncation=True, max_length=modules.tokenizer.model_max_length).input_ids
        for text in texts
    ]
    positions = modules.tokenizer.model_max_length
    padded = []
    for encoder in (modules.text_encoder_1, modules.text_encoder_2):
        pad = encoder.config.pad_token_id
        padded.append(torch.tensor([row + [pad] * (positions - len(row)) for row in rows]))
    return padded[0], padded[1]


def encode_tokens(modules: SketchModules, ids_1: torch.Tensor, ids_2: torch.Tensor) -> Conditioning:
    """Both encoders' last hidden states but one, side by side, and the second encoder's projected end token."""
    import torch

    first = modules.text_encoder_1(input_ids=ids_1, output_hidden_states=True)
    second = modules.text_encoder_2(input_ids=ids_2, output_hidden_states=True)
    hidden = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return Conditioning(hidden, second.text_embeds)


def encode_prompt(modules: SketchModules, text: str | Sequence[str]) -> Conditioning:
    """Conditioning of one prompt (N = 1) or of several (N = their number), without gradients."""
    import torch

    texts = [text] if isinstance(text, str) else list(text)
    with torch.inference_mode():
        return encode_tokens(modules, *tokenize(modules, texts))


def size_ids(height: int, width: int, count: int) -> torch.Tensor:
    """SDXL's size vector (count, 6) for pictures of height x width pixels: original, crop corner, target."""
    import torch

    return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32).repeat(count, 1)


# --- noise ---------------------------------------------------------------------------------------------------------


def alphas_bar(scheduler_config: dict[str, Any]) -> torch.Tensor:
    """Share of the picture (0..1) that is left at each training timestep, float64."""
    import torch

    if scheduler_config["beta_schedule"] != "scaled_linear":
        raise ValueError(f"unknown beta schedule {scheduler_config['beta_schedule']}")
    first, last = scheduler_config["beta_start"] ** 0.5, scheduler_config["beta_end"] ** 0.5
    betas = torch.linspace(first, last, scheduler_config["num_train_timesteps"], dtype=torch.float64) ** 2
    shares = torch.cumprod(1 - betas, 0)
    if scheduler_config.get("rescale_betas_zero_snr"):
        roots = shares.sqrt()
        shares = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        shares[-1] = 4.8973451890853435e-08  # as ComfyUI: an infinite sigma cannot be stepped from
    return shares


def sigma_steps(scheduler_config: dict[str, Any], steps: int, denoise: float) -> list[tuple[float, float]]:
    """(sigma, timestep) of each step and a last (0, 0): ComfyUI's `normal` schedule, its tail when denoise < 1."""
    if not 0 < denoise <= 1:
        return [(0.0, 0.0)]
    shares = alphas_bar(scheduler_config)
    logs = ((1 - shares) / shares).sqrt().log()
    count = steps if denoise > 0.9999 else int(steps / denoise)
    last = len(logs) - 1
    schedule = []
    for index in range(count):
        time = last * (1 - index / max(1, count - 1)) if count > 1 else float(last)
        low = math.floor(time)
        log = logs[low] + (logs[min(low + 1, last)] - logs[low]) * (time - low)
        schedule.append((float(log.exp()), float(round(time))))
    return [*schedule, (0.0, 0.0)][-(steps + 1) :]


def noise_like(latent: torch.Tensor, seed: int) -> torch.Tensor:
    """Unit noise of the latent's shape that depends on the seed alone."""
    import torch

    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(latent.shape, generator=generator, dtype=torch.float32).to(latent.device)


# --- sampling ------------------------------------------------------------------------------------------------------


def empty_latent(modules: SketchModules, width: int, height: int, count: int = 1) -> torch.Tensor:
    """Zeros (count, channels, height / 8, width / 8)."""
    import torch

    channels = modules.unet.config.in_channels
    return torch.zeros(count, channels, height // LATENT_SCALE, width // LATENT_SCALE)


def sample(
    modules: SketchModules,
    positive: Conditioning,
    negative: Conditioning,
    latent: torch.Tensor,
    seed: int,
    steps: int = DEFAULT_STEPS,
    cfg: float = DEFAULT_CFG,
    denoise: float = 1.0,
    callback: StepCallback | None = None,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Euler from noise to latents of the same shape as `latent`; deterministic for one machine and thread count.

    denoise < 1 starts from the given latent with that share of the noise; 0 returns it unchanged. `noise` replaces the
    seed's noise (shape of `latent`), so that several frames can share it.
    """
    import torch

    schedule = sigma_steps(modules.scheduler_config, steps, denoise)
    if len(schedule) == 1:
        return latent.clone()
    with torch.inference_mode():
        start = schedule[0][0]
        # Full noise starts at the variance the model was trained with, as ComfyUI's max_denoise does.
        grow = math.sqrt(1 + start * start) if denoise > 0.9999 else start
        x = latent + (noise_like(latent, seed) if noise is None else noise) * grow
        denoiser = _Denoiser(modules, positive, negative, latent, cfg)
        for index, (sigma, time, following) in enumerate(_pairs(schedule)):
            clean = denoiser(x, sigma, time)
            x = x + (x - clean) / sigma * (following - sigma)
            if callback is not None:
                callback(index + 1, len(schedule) - 1, clean)
    return x


def _pairs(schedule: list[tuple[float, float]]) -> Iterator[tuple[float, float, float]]:
    for (sigma, time), (following, _) in pairwise(schedule):
        yield sigma, time, following


class _Denoiser:
    """Guided prediction of the clean latents, both prompts in one batch."""

    def __init__(
        self, modules: SketchModules, positive: Conditioning, negative: Conditioning, latent: torch.Tensor, cfg: float
    ) -> None:
        import torch

        self._unet = modules.unet
        self._velocity = modules.scheduler_config["prediction_type"] == "v_prediction"
        self._cfg = cfg
        count = latent.shape[0]
        prompts = [positive] if cfg == 1.0 else [positive, negative]
        self._copies = len(prompts)
        length = math.lcm(*(prompt.hidden.shape[1] for prompt in prompts))
        self._hidden = torch.cat([_spread(_repeated(prompt.hidden, length), count) for prompt in prompts])
        self._added = {
            "text_embeds": torch.cat([_spread(prompt.pooled, count) for prompt in prompts]),
            "time_ids": size_ids(latent.shape[2] * LATENT_SCALE, latent.shape[3] * LATENT_SCALE, count * self._copies),
        }

    def __call__(self, x: torch.Tensor, sigma: float, time: float) -> torch.Tensor:
        import torch

        scaled = torch.cat([x] * self._copies) / math.sqrt(1 + sigma * sigma)
        output = self._unet(
            scaled, time, encoder_hidden_states=self._hidden, added_cond_kwargs=self._added, return_dict=False
        )[0]
        if self._copies == 2:
            wanted, unwanted = output.chunk(2)
            output = unwanted + (wanted - unwanted) * self._cfg
        if self._velocity:
            return x / (1 + sigma * sigma) - output * (sigma / math.sqrt(1 + sigma * sigma))
        return x - output * sigma


def _repeated(hidden: torch.Tensor, length: int) -> torch.Tensor:
    """A prompt over and over to `length` tokens: attention's answer to it stays the same."""
    return hidden if hidden.shape[1] == length else hidden.repeat(1, length // hidden.shape[1], 1)


def _spread(tensor: torch.Tensor, count: int) -> torch.Tensor:
    if tensor.shape[0] not in (1, count):
        raise ValueError(f"{tensor.shape[0]} prompts cannot be shared by {count} latents")
    return tensor if tensor.shape[0] == count else tensor.repeat(count, *[1] * (tensor.dim() - 1))


# --- pictures ------------------------------------------------------------------------------------------------------


def decode(modules: SketchModules, latent: torch.Tensor) -> torch.Tensor:
    """Pictures (N, H, W, 3) with values 0..1 from latents (N, C, H/8, W/8)."""
    import torch

    with torch.inference_mode():
        pixels = modules.vae.decode(latent / modules.vae.config.scaling_factor, return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def encode(modules: SketchModules, pixels: torch.Tensor) -> torch.Tensor:
    """Latents (N, C, H/8, W/8) from pictures (N, H, W, 3), 0..1; of other sides the middle is taken, as in ComfyUI."""
    import torch

    rows, columns = (_middle(side) for side in pixels.shape[1:3])
    with torch.inference_mode():
        square = pixels[:, rows, columns, :3].permute(0, 3, 1, 2) * 2 - 1
        return modules.vae.encode(square, return_dict=False)[0] * modules.vae.config.scaling_factor


def _middle(side: int) -> slice:
    """The largest stretch of whole latent cells in the middle of a side."""
    left_over = side % LATENT_SCALE
    return slice(left_over // 2, left_over // 2 + side - left_over)
