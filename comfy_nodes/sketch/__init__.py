"""The sketch base's model code: its sizes, its file layout, its LoRA format and its one sampler."""
