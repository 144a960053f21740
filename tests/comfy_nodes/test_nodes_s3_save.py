"""S3Save: what it hands over, what it embeds, and what it writes on a desktop; every file is decoded again."""

from __future__ import annotations

import hashlib
import io
import json
import math
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from comfy_nodes.hand_over import hand_over
from comfy_nodes.media import pixels_of
from comfy_nodes.provenance import DIGITAL_SOURCE_TYPE, without_secrets
from comfy_nodes.s3_save import S3Save, safe_name

GRAPH = {
    "1": {"class_type": "CharacterLoRALoader", "inputs": {"character_id": "mira", "version": 2, "sha256": "ab"}},
    "2": {"class_type": "KSampler", "inputs": {"seed": 7, "model": ["1", 0]}, "_meta": {"title": "paint"}},
    "3": {"class_type": "Fetch", "inputs": {"api_key": "s3cret-1", "imageURL": "s3cret-2", "access-token": "s3cret-3"}},
    "4": {"class_type": "Fetch", "inputs": {"source": "https://x.example/a.png?sig=s3cret-4", "monkey": "bananas"}},
}


@pytest.fixture
def batch() -> torch.Tensor:
    """Three frames 48 x 32: a dark background, a light square that moves, colours that differ by channel."""
    images = torch.zeros(3, 32, 48, 3)
    images[..., 0], images[..., 1], images[..., 2] = 0.2, 0.4, 0.6
    for frame in range(3):
        images[frame, 8:24, 8 * frame : 8 * frame + 16] = torch.tensor([0.9, 0.8, 0.1])
    return images


def save(images: torch.Tensor, form: str, **options: Any) -> dict[str, Any]:
    """What the node answers, once its files are on the other side."""
    graph = options.pop("graph", GRAPH)
    shown: dict[str, Any] = S3Save().save(images, options.pop("name", "mira"), form, prompt=graph, **options)["ui"]
    assert hand_over().flush(30)
    return shown


def uploaded(server: Any, index: int = 0) -> bytes:
    number = next(number for number, wanted in enumerate(server.uploads) if wanted["index"] == index)
    content: bytes = server.files[f"{number}-{server.uploads[number]['name']}"]
    return content


def test_every_image_of_a_batch_is_one_asset(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    assets = save(batch, "png")["assets"]
    assert [asset["name"] for asset in assets] == ["mira-1.png", "mira-2.png", "mira-3.png"]


def test_the_asset_tells_what_will_be_stored(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    (asset,) = save(batch[:1], "png")["assets"]
    upload = asset.pop("upload")
    assert (len(upload), asset) == (
        32,
        {"name": "mira-1.png", "media_type": "image/png", "width": 48, "height": 32},
    )


def test_the_ticket_is_asked_for_under_the_reference_of_the_asset(
    linked: Any, folder_host: Any, batch: torch.Tensor
) -> None:
    (asset,) = save(batch[:1], "png")["assets"]
    content = uploaded(linked)
    (wanted,) = linked.uploads
    assert (wanted["upload"], wanted["bytes"], wanted["sha256"]) == (
        asset["upload"],
        len(content),
        hashlib.sha256(content).hexdigest(),
    )


def test_a_png_holds_exactly_the_pixels_of_the_tensor(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:1], "png")
    decoded = np.asarray(Image.open(io.BytesIO(uploaded(linked))))
    assert np.array_equal(decoded, pixels_of(batch)[0])


@pytest.mark.parametrize(("form", "kind"), [("webp", "WEBP"), ("jpeg", "JPEG")])
def test_a_lossy_image_is_near_the_tensor(
    form: str, kind: str, linked: Any, folder_host: Any, batch: torch.Tensor
) -> None:
    save(batch[:1], form)
    image = Image.open(io.BytesIO(uploaded(linked)))
    difference = np.abs(np.asarray(image.convert("RGB")).astype(int) - pixels_of(batch)[0])
    assert (image.format, difference.mean() < 4) == (kind, True)


@pytest.mark.parametrize(("form", "codec"), [("mp4", "h264"), ("webm", "vp9")])
def test_a_batch_becomes_one_video_that_plays_back_as_it_was(
    form: str, codec: str, linked: Any, folder_host: Any, batch: torch.Tensor
) -> None:
    (asset,) = save(batch, form, fps=6.0)["assets"]
    with av.open(io.BytesIO(uploaded(linked))) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        described = (stream.codec_context.name, stream.pix_fmt, float(stream.average_rate or 0))
    assert described == (codec, "yuv420p", 6.0)
    assert np.abs(np.stack(frames).astype(int) - np.stack(pixels_of(batch))).mean() < 6
    assert (asset["frames"], asset["fps"], asset["duration"]) == (3, 6.0, 0.5)


def test_an_mp4_has_its_index_before_its_pictures(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch, "mp4")
    content = uploaded(linked)
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_odd_sides_are_padded_to_even_ones_not_cropped(linked: Any, folder_host: Any) -> None:
    (asset,) = save(torch.full((2, 33, 47, 3), 0.5), "mp4")["assets"]
    with av.open(io.BytesIO(uploaded(linked))) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (asset["width"], asset["height"]) == (48, 34)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg", "mp4", "webm"])
def test_the_same_images_give_the_same_bytes(form: str, linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    for _ in range(2):
        save(batch[:1], form)
    first, second = linked.uploads
    assert (first["sha256"], first["upload"] != second["upload"]) == (second["sha256"], True)


def test_two_saves_of_one_prompt_do_not_share_an_index(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:2], "png")
    save(batch, "mp4")
    assert sorted(upload["index"] for upload in linked.uploads) == [0, 1, 2]


def test_a_png_carries_the_graph_where_comfyui_looks_for_it(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:1], "png")
    texts = Image.open(io.BytesIO(uploaded(linked))).text  # type: ignore[attr-defined]
    assert json.loads(texts["prompt"])["2"] == {
        "class_type": "KSampler",
        "inputs": {"seed": 7, "model": ["1", 0]},
        "_meta": {"title": "paint"},
    }


def test_a_png_says_which_character_is_in_it(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:1], "png")
    texts = Image.open(io.BytesIO(uploaded(linked))).text  # type: ignore[attr-defined]
    assert json.loads(texts["troupe"])["characters"] == [{"character_id": "mira", "version": 2, "sha256": "ab"}]


@pytest.mark.parametrize("form", ["png", "webp", "jpeg", "mp4", "webm"])
def test_every_format_says_that_a_model_made_it(form: str, linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch, form)
    assert DIGITAL_SOURCE_TYPE.encode() in uploaded(linked)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg", "mp4", "webm"])
def test_no_format_embeds_a_secret_of_the_graph(form: str, linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch, form, extra_pnginfo={"workflow": {"api_key": "s3cret-5"}})
    assert b"s3cret" not in uploaded(linked)


def test_an_input_that_only_sounds_like_a_secret_is_kept() -> None:
    assert without_secrets(GRAPH)["4"]["inputs"] == {"monkey": "bananas"}


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_the_graph_is_in_the_exif_of_formats_without_text(
    form: str, linked: Any, folder_host: Any, batch: torch.Tensor
) -> None:
    save(batch[:1], form)
    model = Image.open(io.BytesIO(uploaded(linked))).getexif()[0x0110]
    assert json.loads(model.removeprefix("prompt:"))["2"]["inputs"]["seed"] == 7


def test_a_graph_too_long_for_exif_does_not_spoil_the_jpeg(linked: Any, folder_host: Any, batch: torch.Tensor) -> None:
    long = {"1": {"class_type": "X", "inputs": {"text": "x" * 80_000}}}
    save(batch[:1], "jpeg", graph=long)
    exif = Image.open(io.BytesIO(uploaded(linked))).getexif()
    assert (exif.get(0x0131), 0x0110 in exif) == ("Troupe", False)


def test_on_a_desktop_files_go_to_the_output_folder(unlinked: None, folder_host: Any, batch: torch.Tensor) -> None:
    shown = save(batch[:2], "png")
    assert shown == {
        "images": [
            {"filename": "mira_00001_.png", "subfolder": "", "type": "output"},
            {"filename": "mira_00002_.png", "subfolder": "", "type": "output"},
        ]
    }
    assert (folder_host.output_dir() / "mira_00002_.png").read_bytes().startswith(b"\x89PNG")


def test_on_a_desktop_nothing_is_overwritten(unlinked: None, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:1], "png")
    first = (folder_host.output_dir() / "mira_00001_.png").read_bytes()
    save(batch[1:2], "png")
    assert (folder_host.output_dir() / "mira_00001_.png").read_bytes() == first
    assert (folder_host.output_dir() / "mira_00002_.png").exists()


def test_on_a_desktop_the_artists_workflow_is_kept(unlinked: None, folder_host: Any, batch: torch.Tensor) -> None:
    save(batch[:1], "png", extra_pnginfo={"workflow": {"nodes": []}})
    image = Image.open(folder_host.output_dir() / "mira_00001_.png")
    assert json.loads(image.text["workflow"]) == {"nodes": []}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("typed", "name"),
    [("../../etc/passwd", "etc-passwd"), ("", "image"), ("Mïra ☂", "M-ra"), ("a/b\\c", "a-b-c"), ("x" * 500, "x" * 80)],
)
def test_a_name_becomes_a_safe_file_name(typed: str, name: str) -> None:
    assert safe_name(typed) == name


def test_a_tensor_that_is_no_image_is_refused(linked: Any, folder_host: Any) -> None:
    with pytest.raises(ValueError, match="not a batch of images"):
        save(torch.zeros(3, 32, 48), "png")


def test_values_that_are_no_numbers_become_black_not_a_crash(linked: Any, folder_host: Any) -> None:
    save(torch.full((1, 8, 8, 3), math.nan), "png")
    assert np.asarray(Image.open(io.BytesIO(uploaded(linked)))).max() == 0


def test_it_always_runs_again() -> None:
    assert math.isnan(S3Save.IS_CHANGED())
