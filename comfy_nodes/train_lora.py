"""TrainLoRA: trains the LoRA of a character's version with the base's own trainer, and hands the verified file over."""

from __future__ import annotations

from typing import Any

from .boundary import contained, never_the_same, ui
from .control_plane import ControlPlane, Dataset, link_from_environment
from .host import current_host, pause
from .training.failure import TrainerError
from .training.report import ProgressReporter
from .training.session import Session


class TrainLoRA:
    """A V1 output node: dataset, base and recipe of a version -> the sha256 of its LoRA."""

    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("sha256",)
    FUNCTION = "train"
    OUTPUT_NODE = True
    CATEGORY = "Troupe"
    DESCRIPTION = "Trains a character's LoRA in a process of its own; images, captions and recipe come from the server."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "character_id": ("STRING", {"default": ""}),
                "version": ("INT", {"default": 1, "min": 1, "max": 1_000_000}),
                "base": ("STRING", {"default": "sketch"}),
                "recipe": ("STRING", {"default": "fast"}),
            },
            "optional": {"dataset_digest": ("STRING", {"default": ""})},
        }

    @classmethod
    def IS_CHANGED(cls, **_inputs: Any) -> float:
        """NaN, so that it always runs: a retry must train again."""
        return never_the_same()

    @contained
    def train(
        self, character_id: str, version: int, base: str, recipe: str, dataset_digest: str = ""
    ) -> dict[str, Any]:
        """Raises TrainerError (its first line is `code: detail`), TransportError, or the host's interrupt exception."""
        host = current_host()
        link = _link()
        with ProgressReporter(link, host.prompt_id()) as reporter:
            try:
                dataset = link.dataset(character_id, version, pause)
                _check_agreement(dataset, base, recipe, dataset_digest)
                trained = Session(host, link, reporter, dataset).run()
            except TrainerError as error:
                if error.code == "cancelled":
                    host.raise_if_interrupted()
                raise
        return {"ui": ui(lora=[trained]), "result": (trained["sha256"],)}


def _link() -> ControlPlane:
    link = link_from_environment()
    if link is None:
        raise RuntimeError("TrainLoRA needs a control plane (TROUPE_CONTROL_PLANE_URL): the dataset comes from it")
    return link


def _check_agreement(dataset: Dataset, base: str, recipe: str, digest: str) -> None:
    """The graph was bound to a base, a recipe and a dataset: training anything else would be silently wrong."""
    for what, bound, found in (
        ("base", base, dataset.base),
        ("recipe", recipe, dataset.recipe),
        ("dataset", digest, dataset.digest),
    ):
        if bound and bound != found:
            raise TrainerError("changed", f"the job was made for {what} {bound}, the version now has {found}")
