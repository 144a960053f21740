"""The embedded pod's own node classes, by ComfyUI's names."""

from .images import NODES as IMAGE_NODES
from .latents import NODES as LATENT_NODES
from .loaders import NODES as LOADER_NODES

NODE_CLASS_MAPPINGS = {**LOADER_NODES, **LATENT_NODES, **IMAGE_NODES}
NODE_DISPLAY_NAME_MAPPINGS = {
    "CheckpointLoaderSimple": "Load Checkpoint",
    "LoraLoader": "Load LoRA",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "EmptyLatentImage": "Empty Latent Image",
    "RepeatLatentBatch": "Repeat Latent Batch",
    "VAEDecode": "VAE Decode",
    "VAEEncode": "VAE Encode",
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "ImageScale": "Upscale Image",
}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
