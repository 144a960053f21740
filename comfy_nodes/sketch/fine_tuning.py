"""Training one character's LoRA on the sketch base: what is trained, the loss, and the file that comes out."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import keys, lora, sampling
from .reference_images import Reference, vary_caption
from .tensor_file import write_tensors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .architecture import SketchModules

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class DivergedError(Exception):
    """The loss is no longer a number; the learning rate is too high for this base."""


@dataclass(frozen=True)
class Recipe:
    """Everything a recipe may set. Rates are per step of AdamW; shares and dropouts are 0..1."""

    steps: int = 250
    batch_size: int = 8
    rank: int = 16
    alpha: int = 16
    learning_rate: float = 1e-3
    text_learning_rate: float = 0.0  # 0 = the text encoders stay as they are
    convolutions: bool = True
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.01
    gradient_norm: float = 1.0
    snr_gamma: float = 5.0  # 0 = every noise level counts the same
    phrase_dropout: float = 0.15
    caption_dropout: float = 0.08
    views: int = 4
    zoom: float = 0.12
    precision: str = "auto"  # float32 | bfloat16 | auto = bfloat16 where the processor computes it in hardware

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Recipe:
        """Recipe of JSON parameters. ValueError names a parameter that this trainer does not know or cannot use."""
        known = {field.name: field.type for field in fields(cls)}
        unknown = sorted(set(params) - set(known))
        if unknown:
            raise ValueError(f"unknown recipe parameters: {', '.join(unknown)}")
        recipe = cls(**params)
        for name in ("steps", "batch_size", "rank", "alpha", "learning_rate", "views"):
            if not getattr(recipe, name) > 0:
                raise ValueError(f"recipe parameter {name} must be above 0")
        if recipe.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"recipe parameter precision cannot be {recipe.precision!r}")
        return recipe


class LoraTraining:
    """One run: low-rank layers in the modules' U-Net (and text encoders), trained step by step.

    The modules are changed in place by peft, so they show the character in samples taken between steps.
    """

    def __init__(self, modules: SketchModules, references: Sequence[Reference], recipe: Recipe, seed: int) -> None:
        import torch
        from diffusers.models.attention_processor import AttnProcessor

        self.recipe = recipe
        self.precision = _precision(recipe.precision)
        self._modules = modules
        self._references = references
        self._chance = random.Random(seed)
        self._noise = torch.Generator("cpu").manual_seed(seed)
        torch.manual_seed(seed)  # peft draws the first low-rank weights from torch's own generator
        self._shares = sampling.alphas_bar(modules.scheduler_config).float()
        self._velocity = modules.scheduler_config["prediction_type"] == "v_prediction"
        # The fused attention's backward pass takes a third of a step on a CPU; written out it is a quarter faster.
        unet: Any = modules.unet  # diffusers' mixins hide their methods from type checkers
        unet.set_attn_processor(AttnProcessor())
        self._unet = unet
        self._trained = _insert_layers(modules, recipe)
        rates = {
            keys.UNET: recipe.learning_rate,
            keys.TEXT_1: recipe.text_learning_rate,
            keys.TEXT_2: recipe.text_learning_rate,
        }
        groups: list[dict[str, Any]] = [
            {"params": _low_rank(getattr(modules, part)), "lr": rates[part]} for part in self._trained
        ]
        self._parameters = [parameter for group in groups for parameter in group["params"]]
        self._optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay, betas=(0.9, 0.99))
        self._rates = torch.optim.lr_scheduler.LambdaLR(self._optimizer, self._share_of_rate)
        self._order = self._endless_order()

    def step(self) -> float:
        """One optimiser step; its loss. Raises DivergedError when the loss is not finite."""
        import torch

        latents, prompts = self._batch()
        noise = torch.randn(latents.shape, generator=self._noise)
        times = self._times(len(latents))
        share = self._shares[times].view(-1, 1, 1, 1)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
        wanted = share.sqrt() * noise - (1 - share).sqrt() * latents if self._velocity else noise
        with torch.set_grad_enabled(len(self._trained) > 1):
            prompt = sampling.encode_tokens(self._modules, *sampling.tokenize(self._modules, prompts))
        height, width = (side * sampling.LATENT_SCALE for side in latents.shape[2:])
        added = {"text_embeds": prompt.pooled, "time_ids": sampling.size_ids(height, width, len(latents))}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            output = self._unet(
                noisy, times, encoder_hidden_states=prompt.hidden, added_cond_kwargs=added, return_dict=False
            )[0]
        loss = ((output.float() - wanted).square().mean(dim=(1, 2, 3)) * self._weights(times)).mean()
        value = float(loss.item())
        if not math.isfinite(value):
            raise DivergedError(f"loss is {value}")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, self.recipe.gradient_norm)
        self._optimizer.step()
        self._rates.step()
        return value

    def lora_state(self) -> dict[str, torch.Tensor]:
        """The low-rank weights under kohya's names, fp16."""
        import torch

        state = {}
        for part in self._trained:
            for path, module in getattr(self._modules, part).named_modules():
                if not hasattr(module, "lora_A"):
                    continue
                name = lora.kohya_name(lora.Layer(part, path))
                state[name + lora.DOWN] = module.lora_A["default"].weight.detach().to(torch.float16)
                state[name + lora.UP] = module.lora_B["default"].weight.detach().to(torch.float16)
                state[name + lora.ALPHA] = torch.tensor(float(self.recipe.alpha), dtype=torch.float16)
        return state

    def _batch(self) -> tuple[torch.Tensor, list[str]]:
        import torch

        chosen = [next(self._order) for _ in range(self.recipe.batch_size)]
        latents = torch.stack([reference.views[self._chance.randrange(len(reference.views))] for reference in chosen])
        prompts = [
            vary_caption(reference.caption, self._chance, self.recipe.phrase_dropout, self.recipe.caption_dropout)
            for reference in chosen
        ]
        return latents, prompts

    def _endless_order(self) -> Iterator[Reference]:
        while True:
            order = list(self._references)
            self._chance.shuffle(order)
            yield from order

    def _times(self, count: int) -> torch.Tensor:
        """One timestep from each of `count` equal parts of the noise range: every batch sees all levels."""
        import torch

        places = (torch.arange(count) + torch.rand(count, generator=self._noise)) / count
        return (places * len(self._shares)).long().clamp(max=len(self._shares) - 1)

    def _weights(self, times: torch.Tensor) -> torch.Tensor:
        """Min-SNR weights: easy, nearly clean levels count less."""
        import torch

        if self.recipe.snr_gamma <= 0:
            return torch.ones(len(times))
        ratio = self._shares[times] / (1 - self._shares[times])
        capped = ratio.clamp(max=self.recipe.snr_gamma)
        return capped / (ratio + 1) if self._velocity else capped / ratio

    def _share_of_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine to zero."""
        warmup = max(1, round(self.recipe.steps * self.recipe.warmup))
        if step < warmup:
            return (step + 1) / warmup
        done = (step - warmup) / max(1, self.recipe.steps - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def write_lora(path: Path, training: LoraTraining, seed: int, images: int, given: Mapping[str, str]) -> None:
    """Write the LoRA with `ss_*` and `modelspec.*` metadata; `given` wins over what is derived here.

    No time, path or id is written: the same pictures, recipe and seed give the same bytes.
    """
    recipe = training.recipe
    derived = {
        "ss_base_model_version": "troupe_sketch",
        "ss_network_module": "peft.LoraModel",
        "ss_network_dim": str(recipe.rank),
        "ss_network_alpha": str(recipe.alpha),
        "ss_network_args": json.dumps({"conv_dim": recipe.rank if recipe.convolutions else 0}),
        "ss_learning_rate": str(recipe.learning_rate),
        "ss_text_encoder_lr": str(recipe.text_learning_rate),
        "ss_max_train_steps": str(recipe.steps),
        "ss_steps": str(recipe.steps),
        "ss_batch_size_per_device": str(recipe.batch_size),
        "ss_num_train_images": str(images),
        "ss_seed": str(seed),
        "ss_mixed_precision": "bf16" if training.precision == "bfloat16" else "no",
        "ss_min_snr_gamma": str(recipe.snr_gamma),
        "ss_output_name": path.stem,
        "ss_training_comment": json.dumps(asdict(recipe), sort_keys=True),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "troupe-sketch/lora",
        "modelspec.implementation": "https://github.com/huggingface/diffusers",
        "modelspec.title": path.stem,
    }
    write_tensors(path, training.lora_state(), derived | dict(given))


def _precision(wanted: str) -> str:
    import torch

    if wanted != "auto":
        return wanted
    # Emulated bfloat16 is slower than float32; torch tells only by this private name, absent on other processors.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)
    return "bfloat16" if supported() else "float32"


def _insert_layers(modules: SketchModules, recipe: Recipe) -> tuple[str, ...]:
    """Put trainable low-rank layers into the modules and freeze the rest; the parts that got some."""
    from peft import LoraConfig, inject_adapter_in_model

    for part in keys.PARTS:
        getattr(modules, part).requires_grad_(False)
    endings = {keys.UNET: ATTENTION + (CONVOLUTION if recipe.convolutions else ())}
    if recipe.text_learning_rate > 0:
        endings |= {keys.TEXT_1: TEXT, keys.TEXT_2: TEXT}
    for part, wanted in endings.items():
        paths = [
            layer.path
            for layer in lora.layers_by_name(modules).values()
            if layer.part == part and layer.path.endswith(wanted)
        ]
        config = LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=paths)
        inject_adapter_in_model(config, getattr(modules, part))
    return tuple(endings)


def _low_rank(module: nn.Module) -> list[torch.Tensor]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
