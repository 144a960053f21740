"""Where this pod keeps its files: model roots, input, output, temp, and the guard against paths that leave them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

MODEL_KINDS = ("checkpoints", "loras", "vae", "text_encoders", "diffusion_models", "embeddings")
MODEL_SUFFIXES = (".safetensors",)
FILE_TYPES = ("output", "input", "temp")


class PathEscapeError(ValueError):
    """A file name or subfolder points outside the folder it was asked for."""


@dataclass(frozen=True)
class Folders:
    """The folders of one pod. `models` are read-only roots; LoRAs fetched at run time live under `data`."""

    data: Path
    models: tuple[Path, ...] = ()

    def prepare(self) -> None:
        """Makes the folders and empties `temp`, as ComfyUI does on start."""
        shutil.rmtree(self.data / "temp", ignore_errors=True)
        for name in (*FILE_TYPES, "lora_cache", "models"):
            (self.data / name).mkdir(parents=True, exist_ok=True)

    def directory(self, file_type: str) -> Path:
        """The folder of a file type (`output`, `input` or `temp`); KeyError for another."""
        if file_type not in FILE_TYPES:
            raise KeyError(file_type)
        return self.data / file_type

    def inside(self, file_type: str, subfolder: str, filename: str) -> Path:
        """The absolute path of a file, or PathEscapeError when it would lie outside its folder."""
        root = self.directory(file_type).resolve()
        path = (root / subfolder / filename).resolve()
        if not path.is_relative_to(root) or "\0" in subfolder + filename:
            raise PathEscapeError(f"{subfolder}/{filename}")
        return path

    def model_roots(self) -> tuple[Path, ...]:
        return (*self.models, self.data / "models")

    def model_dirs(self, kind: str) -> list[Path]:
        return [root / kind for root in self.model_roots() if (root / kind).is_dir()]

    def model_files(self, kind: str) -> list[str]:
        """Names of the model files of a kind, relative to their folder, sorted, each once."""
        names = {
            path.relative_to(folder).as_posix()
            for folder in self.model_dirs(kind)
            for path in folder.rglob("*")
            if path.suffix in MODEL_SUFFIXES and path.is_file()
        }
        return sorted(names)

    def model_path(self, kind: str, name: str) -> Path:
        """The first file of that name among the model roots; FileNotFoundError when there is none."""
        for folder in self.model_dirs(kind):
            path = (folder / name).resolve()
            if path.is_relative_to(folder.resolve()) and path.is_file():
                return path
        raise FileNotFoundError(f"no {kind} file named {name!r} on this pod")

    def lora_cache(self) -> Path:
        return self.data / "lora_cache"
