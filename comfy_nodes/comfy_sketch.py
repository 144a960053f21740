"""The sketch base in ComfyUI: its architecture, latent format and tokenizer, for CheckpointLoaderSimple to find."""

from __future__ import annotations

import importlib
from typing import Any

from .sketch.architecture import SKETCH, TOKENIZER_FOLDER, TextEncoderSizes

# Previews: from a latent cell (as the model sees it) to the colour of its 8 x 8 pixels, -1..1; a least-squares fit on
# the example drawings, 83 % of the variance.
LATENT_RGB_FACTORS = [
    [0.0184, 0.0544, 0.1200], [-0.1298, -0.0320, -0.0414], [-0.0181, 0.1273, 0.0967], [-0.0812, -0.0355, -0.0162],
    [-0.0681, -0.0823, -0.2559], [0.0604, 0.1909, 0.0174], [-0.0284, -0.0700, -0.0566], [0.1361, 0.2318, 0.1269],
    [-0.0853, -0.0345, 0.0415], [-0.0850, -0.0311, -0.0071], [0.0688, 0.0766, 0.1455], [-0.1012, -0.0128, 0.0859],
    [0.0508, 0.0922, -0.0133], [0.0486, -0.0011, 0.0832], [-0.2261, -0.0206, -0.0263], [0.0744, -0.0523, -0.0098],
]  # fmt: skip
LATENT_RGB_BIAS = [0.0949, 0.0327, 0.0251]


class _Ratio:
    """A channel multiplier that is no whole number: 160/96 times 96 is 160, where ComfyUI's own division found 1."""

    def __init__(self, channels: int, of: int) -> None:
        self._channels, self._of = channels, of

    def __mul__(self, other: int) -> int:
        return other * self._channels // self._of

    __rmul__ = __mul__

    def __repr__(self) -> str:
        return f"{self._channels}/{self._of}"


def register() -> None:
    """Put the sketch base before ComfyUI's own models; twice is once.

    It matches no other file: no model of ComfyUI has 96 channels and 16 latent ones. Raises ImportError or
    AttributeError in a ComfyUI whose inside is another.
    """
    models = _comfy("supported_models").models
    if not any(getattr(model, "troupe_sketch", False) for model in models):
        models.insert(0, _sketch_model())


def _comfy(module: str) -> Any:
    # ComfyUI is not installed where this package is type-checked, and importing it starts its devices.
    return importlib.import_module(f"comfy.{module}")


def _sketch_model() -> type[Any]:
    base = _comfy("supported_models").SDXL
    torch = importlib.import_module("torch")
    target = _comfy("supported_models_base").ClipTarget
    tokenizer, text_encoders = _tokenizer(), _text_encoders()

    class TroupeSketch(base):  # type: ignore[misc, valid-type]  # known only inside ComfyUI
        """SDXL made small; file layout, conditioning and v-prediction by the `v_pred` key are SDXL's."""

        troupe_sketch = True
        unet_config = {
            "model_channels": SKETCH.unet_channels[0],
            "in_channels": SKETCH.latent_channels,
            "context_dim": SKETCH.context_channels,
            "adm_in_channels": SKETCH.added_channels,
            "transformer_depth": list(SKETCH.unet_transformers),
            "use_linear_in_transformer": True,
            "use_temporal_attention": False,
        }
        unet_extra_config = {
            "num_heads": -1,
            "num_head_channels": SKETCH.head_channels,
            "channel_mult": [_Ratio(channels, SKETCH.unet_channels[0]) for channels in SKETCH.unet_channels],
        }
        latent_format = _latent_format()
        # So small that half precision saves nothing: pictures are the same on every device.
        supported_inference_dtypes = [torch.float32]

        def inpaint_model(self) -> bool:
            # ComfyUI takes more than 4 input channels for a mask; here they are the latent.
            return False

        def clip_target(self, state_dict: Any = None) -> Any:
            return target(tokenizer, text_encoders)

    return TroupeSketch


def _latent_format() -> type[Any]:
    class TroupeSketchLatents(_comfy("latent_formats").LatentFormat):  # type: ignore[misc]  # known only in ComfyUI
        latent_channels = SKETCH.latent_channels

        def __init__(self) -> None:
            self.scale_factor = SKETCH.vae_scale
            self.latent_rgb_factors = LATENT_RGB_FACTORS
            self.latent_rgb_factors_bias = LATENT_RGB_BIAS

    return TroupeSketchLatents


def _tokenizer() -> type[Any]:
    clip = _comfy("sd1_clip").SDTokenizer
    both = _comfy("sdxl_clip").SDXLTokenizer

    class TroupeSketchTokenizer(both):  # type: ignore[misc, valid-type]  # known only inside ComfyUI
        """Our own vocabulary for both encoders; the first pads with the end token, the second with 0."""

        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            shared = {"embedding_directory": embedding_directory, "tokenizer_data": tokenizer_data or {}}
            folder = str(TOKENIZER_FOLDER)
            self.clip_l = clip(folder, embedding_size=SKETCH.text_1.hidden, embedding_key="clip_l", **shared)
            self.clip_g = clip(
                folder, pad_with_end=False, embedding_size=SKETCH.text_2.hidden, embedding_key="clip_g", **shared
            )

    return TroupeSketchTokenizer


def _text_encoders() -> type[Any]:
    both = _comfy("sdxl_clip").SDXLClipModel
    sizes = {"clip_l_model_config": _text_config(SKETCH.text_1), "clip_g_model_config": _text_config(SKETCH.text_2)}

    class TroupeSketchTextEncoders(both):  # type: ignore[misc, valid-type]  # known only inside ComfyUI
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), **sizes})

    return TroupeSketchTextEncoders


def _text_config(sizes: TextEncoderSizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.intermediate,
        "hidden_act": sizes.activation,
        "max_position_embeddings": SKETCH.positions,
        "eos_token_id": SKETCH.eos_id,
    }
