"""LoadImage and ImageScale on pictures that are not plain RGB."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image

from pod_images.embedded.nodes.images import ImageScale, LoadImage
from pod_images.embedded.pod import Pod

Store = Callable[[str, Image.Image], str]


@pytest.fixture
def store(pod: Pod) -> Store:
    def put(name: str, picture: Image.Image) -> str:
        picture.save(pod.folders.directory("input") / name)
        return name

    return put


def test_transparency_becomes_a_mask_of_1(store: Store) -> None:
    picture = Image.new("RGBA", (4, 2), (10, 20, 30, 0))
    _, mask = LoadImage().load_image(store("clear.png", picture))
    assert torch.equal(mask, torch.ones(1, 2, 4))


def test_a_picture_without_transparency_has_an_empty_mask(store: Store) -> None:
    _, mask = LoadImage().load_image(store("plain.png", Image.new("RGB", (4, 2))))
    assert (tuple(mask.shape), float(mask.sum())) == ((1, 64, 64), 0.0)


def test_a_palette_with_transparency_is_read(store: Store) -> None:
    picture = Image.new("P", (4, 4), 0)
    picture.putpalette([255, 0, 0] * 256)
    picture.info["transparency"] = 0
    image, _ = LoadImage().load_image(store("palette.png", picture))
    assert torch.equal(image[0, 0, 0], torch.tensor([1.0, 0.0, 0.0]))


def test_every_frame_of_an_animation_is_loaded(pod: Pod) -> None:
    frames = [Image.new("RGB", (4, 4), (value, 0, 0)) for value in (10, 20, 30)]
    path = pod.folders.directory("input") / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    image, _ = LoadImage().load_image("moving.gif")
    assert tuple(image.shape) == (3, 4, 4, 3)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "absent.png", "../../x.png [output]"])
def test_a_name_that_is_no_file_of_this_pod_is_refused(pod: Pod, name: str) -> None:
    assert LoadImage.VALIDATE_INPUTS(name) == f"Invalid image file: {name}"


@pytest.mark.parametrize("method", ImageScale.METHODS)
def test_every_method_gives_the_asked_size(method: str) -> None:
    (scaled,) = ImageScale().upscale(torch.rand(2, 8, 12, 3), method, 20, 10, "disabled")
    assert (tuple(scaled.shape), scaled.dtype) == ((2, 10, 20, 3), torch.float32)


def test_a_side_of_0_follows_the_proportion() -> None:
    (scaled,) = ImageScale().upscale(torch.rand(1, 8, 16, 3), "bilinear", 0, 4, "disabled")
    assert tuple(scaled.shape) == (1, 4, 8, 3)


def test_centre_crop_keeps_the_middle() -> None:
    image = torch.zeros(1, 4, 12, 3)
    image[:, :, 4:8] = 1
    (scaled,) = ImageScale().upscale(image, "nearest-exact", 4, 4, "center")
    assert torch.equal(scaled, torch.ones(1, 4, 4, 3))
