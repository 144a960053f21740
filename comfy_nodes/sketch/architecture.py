"""The sizes of the sketch base and its empty diffusers/transformers modules; nothing here reads a file of weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TOKENIZER_FOLDER = Path(__file__).with_name("tokenizer")


@dataclass(frozen=True)
class TextEncoderSizes:
    """One CLIP text encoder; ComfyUI wants 49408 rows, 77 positions and at least 3 layers."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: str
    pad_id: int


@dataclass
class SketchModules:
    """Everything that makes a picture; scheduler_config holds the keyword arguments of a diffusers scheduler."""

    unet: UNet2DConditionModel
    text_encoder_1: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    vae: AutoencoderTiny
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]


@dataclass(frozen=True)
class SketchArchitecture:
    """SDXL made small: every number that the file layout, the trainer and ComfyUI's registration need."""

    image_size: int = 128
    latent_channels: int = 16
    vae_width: int = 64
    vae_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    vae_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    vae_scale: float = 0.13025  # SDXL's latent factor: ComfyUI multiplies by it, so the model sees unit latents
    vae_shift: float = 0.0
    unet_channels: tuple[int, ...] = (96, 160)
    unet_layers: int = 1
    unet_transformers: tuple[int, ...] = (1, 1)  # transformer layers per level
    head_channels: int = 32
    text_1: TextEncoderSizes = field(default_factory=lambda: TextEncoderSizes(32, 3, 2, 128, "quick_gelu", 49407))
    text_2: TextEncoderSizes = field(default_factory=lambda: TextEncoderSizes(32, 3, 2, 128, "gelu", 0))
    vocabulary: int = 49408
    bos_id: int = 49406
    eos_id: int = 49407
    positions: int = 77
    time_id_channels: int = 256
    prediction: str = "v_prediction"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    train_steps: int = 1000

    @property
    def context_channels(self) -> int:
        """Width of the prompt that cross attention reads."""
        return self.text_1.hidden + self.text_2.hidden

    @property
    def added_channels(self) -> int:
        """Width of SDXL's pooled-text-and-size vector (ComfyUI's adm_in_channels)."""
        return self.text_2.hidden + 6 * self.time_id_channels

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return {
            "num_train_timesteps": self.train_steps, "beta_start": self.beta_start, "beta_end": self.beta_end,
            "beta_schedule": "scaled_linear", "prediction_type": self.prediction, "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": False,
        }  # fmt: skip

    def build(self) -> SketchModules:
        """Fresh modules with random weights (fp32, CPU)."""
        return SketchModules(
            unet=self.build_unet(), text_encoder_1=self.build_text_1(), text_encoder_2=self.build_text_2(),
            vae=self.build_vae(), tokenizer=self.build_tokenizer(), scheduler_config=self.scheduler_config,
        )  # fmt: skip

    def build_unet(self) -> UNet2DConditionModel:
        """U-Net over (batch, latent_channels, size/8, size/8) with text and size conditioning as SDXL."""
        from diffusers import UNet2DConditionModel

        levels = len(self.unet_channels)
        down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.unet_transformers]
        up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(self.unet_transformers)]
        return UNet2DConditionModel(
            sample_size=self.image_size // 8, in_channels=self.latent_channels, out_channels=self.latent_channels,
            down_block_types=tuple(down), up_block_types=tuple(up), block_out_channels=self.unet_channels,
            layers_per_block=self.unet_layers, cross_attention_dim=self.context_channels,
            transformer_layers_per_block=tuple(max(1, depth) for depth in self.unet_transformers),
            # diffusers' name is historical: for SDXL it is the NUMBER of heads per level
            attention_head_dim=tuple(channels // self.head_channels for channels in self.unet_channels),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=self.time_id_channels,
            projection_class_embeddings_input_dim=self.added_channels, norm_num_groups=32, norm_eps=1e-5,
            only_cross_attention=(False,) * levels,
        )  # fmt: skip

    def build_text_1(self) -> CLIPTextModel:
        from transformers import CLIPTextModel

        return CLIPTextModel(self._text_config(self.text_1))

    def build_text_2(self) -> CLIPTextModelWithProjection:
        from transformers import CLIPTextModelWithProjection

        return CLIPTextModelWithProjection(self._text_config(self.text_2))

    def build_vae(self) -> AutoencoderTiny:
        """TAESD: images in [-1, 1] <-> latents of unit deviation, 8 times smaller."""
        from diffusers import AutoencoderTiny

        width = (self.vae_width,) * len(self.vae_encoder_blocks)
        return AutoencoderTiny(
            latent_channels=self.latent_channels, encoder_block_out_channels=width, decoder_block_out_channels=width,
            num_encoder_blocks=self.vae_encoder_blocks, num_decoder_blocks=self.vae_decoder_blocks,
        )  # fmt: skip

    def build_tokenizer(self) -> CLIPTokenizer:
        """CLIP's tokenizer over our own vocabulary files."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer(
            str(TOKENIZER_FOLDER / "vocab.json"), str(TOKENIZER_FOLDER / "merges.txt"), model_max_length=self.positions
        )

    def _text_config(self, sizes: TextEncoderSizes) -> Any:
        from transformers import CLIPTextConfig

        return CLIPTextConfig(
            vocab_size=self.vocabulary, hidden_size=sizes.hidden, num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads, intermediate_size=sizes.intermediate, hidden_act=sizes.activation,
            max_position_embeddings=self.positions, projection_dim=sizes.hidden, bos_token_id=self.bos_id,
            eos_token_id=self.eos_id, pad_token_id=sizes.pad_id,
        )  # fmt: skip


SKETCH = SketchArchitecture()
