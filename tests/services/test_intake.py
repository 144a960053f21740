"""Intake: every kind of bad, odd and good picture, made with Pillow and judged as it would be in a request."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from controlplane.domain.datasets import ImageVerdict
from controlplane.errors import DatasetRejected
from controlplane.services.intake import SourceFile, judge, judge_now
from controlplane.settings import Settings
from controlplane.workflows.models import load_models
from tests.services.character_studio import drawing, encoded, png

SETTINGS = Settings()
BASE = load_models(SETTINGS.templates / "models.yaml")["sketch"]


def files_in(folder: Path, *contents: bytes, name: str = "it.png") -> list[SourceFile]:
    files = []
    for number, content in enumerate(contents):
        path = folder / f"source-{number}"
        path.write_bytes(content)
        files.append(SourceFile(name if len(contents) == 1 else f"{number}-{name}", path))
    return files


def verdict_on(folder: Path, content: bytes) -> ImageVerdict:
    return judge_now(files_in(folder, content), SETTINGS, folder, BASE).report.images[0]


def kept(folder: Path, content: bytes) -> Image.Image:
    judged = judge_now(files_in(folder, content), SETTINGS, folder, BASE)
    assert judged.report.images[0].is_usable, judged.report.images[0].reasons
    return Image.open(judged.pngs[0])


def header_declaring(width: int, height: int) -> bytes:
    """A PNG whose header is true to the format and whose pixels do not exist."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def animated(format: str) -> bytes:
    frames = [drawing(n) for n in range(3)]
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=80)


def test_a_sharp_picture_of_enough_pixels_is_ok(tmp_path: Path) -> None:
    assert verdict_on(tmp_path, png(drawing(1))).verdict == "ok"


def test_a_text_file_named_png_is_rejected_as_no_picture(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, b"Dear sir,\nthis is a letter.\n")
    assert (verdict.verdict, "whatever its name says" in verdict.reasons[0]) == ("reject", True)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_png_is_rejected_as_damaged(tmp_path: Path, part: float) -> None:
    whole = png(drawing(1))
    verdict = verdict_on(tmp_path, whole[: int(len(whole) * part)])
    assert (verdict.verdict, "damaged or cut off" in verdict.reasons[0]) == ("reject", True)


def test_a_truncated_jpeg_is_rejected_as_damaged(tmp_path: Path) -> None:
    whole = encoded(drawing(1), "JPEG")
    assert "damaged or cut off" in verdict_on(tmp_path, whole[: len(whole) // 2]).reasons[0]


def test_a_png_with_damaged_bytes_inside_is_rejected(tmp_path: Path) -> None:
    whole = bytearray(png(drawing(1)))
    whole[len(whole) // 2] ^= 0xFF
    assert verdict_on(tmp_path, bytes(whole)).verdict == "reject"


def test_an_empty_file_is_rejected(tmp_path: Path) -> None:
    assert verdict_on(tmp_path, b"").verdict == "reject"


def test_a_picture_of_one_pixel_is_rejected_as_too_small(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, png(Image.new("RGB", (1, 1))))
    assert (verdict.verdict, verdict.reasons[0].startswith("it is 1 x 1 pixels")) == ("reject", True)


@pytest.mark.parametrize(("width", "height"), [(30_000, 30_000), (9000, 9000), (100_000, 600), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path: Path, width: int, height: int) -> None:
    verdict = verdict_on(tmp_path, header_declaring(width, height))
    assert (verdict.verdict, "its header declares" in verdict.reasons[0]) == ("reject", True)


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    files = files_in(tmp_path, png(drawing(1)) + b"\0" * 5000)
    small = Settings(max_image_bytes=4000)
    assert "at most 4,000" in judge_now(files, small, tmp_path, BASE).report.images[0].reasons[0]


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_rejected_with_its_number_of_frames(tmp_path: Path, format: str) -> None:
    verdict = verdict_on(tmp_path, animated(format))
    assert (verdict.verdict, "animation of 3 frames" in verdict.reasons[0]) == ("reject", True)


def test_a_still_gif_is_accepted(tmp_path: Path) -> None:
    assert verdict_on(tmp_path, encoded(drawing(1), "GIF")).is_usable


def test_a_palette_png_with_alpha_is_accepted_on_white(tmp_path: Path) -> None:
    picture = drawing(1).quantize(16)
    picture.info["transparency"] = picture.getpixel((0, 0))
    image = kept(tmp_path, png(picture, transparency=picture.getpixel((0, 0))))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_becomes_white_paper(tmp_path: Path, mode: str) -> None:
    picture = drawing(1).convert(mode)
    picture.paste(Image.new(mode, (20, 20)), (0, 0))
    assert kept(tmp_path, png(picture)).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
def test_a_jpeg_rotated_by_exif_is_turned(tmp_path: Path, orientation: int) -> None:
    picture = drawing(3, (200, 120))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = kept(tmp_path, encoded(picture, "JPEG", exif=exif, quality=95))
    turn = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90}[orientation]  # fmt: skip
    expected = picture.transpose(turn)
    assert image.size == expected.size
    corner = (10, 10)
    assert image.getpixel(corner) == pytest.approx(expected.getpixel(corner), abs=24)


def test_the_kept_png_carries_nothing_of_the_original_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    image = kept(tmp_path, encoded(drawing(1), "JPEG", exif=exif))
    assert (dict(image.getexif()), image.info) == ({}, {})


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    assert kept(tmp_path, encoded(drawing(1).convert(mode), "JPEG")).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    grey = drawing(1).convert("L")
    deep = Image.frombytes("I;16", grey.size, b"".join(struct.pack("<H", value * 257) for value in grey.tobytes()))
    image = kept(tmp_path, png(deep))
    assert image.convert("L").tobytes() == grey.tobytes()


def test_a_large_picture_is_kept_at_the_size_that_training_uses(tmp_path: Path) -> None:
    assert max(kept(tmp_path, encoded(drawing(1, (2400, 1200)), "JPEG")).size) == 1536


def test_a_picture_of_one_colour_is_rejected(tmp_path: Path) -> None:
    assert "nothing but one colour" in verdict_on(tmp_path, png(Image.new("RGB", (200, 200), "red"))).reasons[0]


def test_a_blurred_picture_is_a_warning(tmp_path: Path) -> None:
    blurred = drawing(1, (512, 512)).filter(ImageFilter.GaussianBlur(14))
    verdict = verdict_on(tmp_path, png(blurred))
    assert (verdict.verdict, verdict.reasons) == ("warn", ("it looks blurred",))


def test_a_picture_below_the_working_size_is_a_warning(tmp_path: Path) -> None:
    verdict = verdict_on(tmp_path, png(drawing(1, (100, 100))))
    assert (verdict.verdict, "will be enlarged" in verdict.reasons[0]) == ("warn", True)


def test_a_very_dark_picture_is_a_warning(tmp_path: Path) -> None:
    dark = drawing(1).point(lambda value: value // 14)
    assert "it is very dark" in verdict_on(tmp_path, png(dark)).reasons


def test_the_same_picture_twice_counts_once(tmp_path: Path) -> None:
    report = judge_now(files_in(tmp_path, png(drawing(1)), png(drawing(1))), SETTINGS, tmp_path, BASE).report
    assert [image.verdict for image in report.images] == ["ok", "reject"]


def test_nearly_the_same_picture_is_a_warning(tmp_path: Path) -> None:
    first = drawing(1)
    second = first.point(lambda value: min(255, value + 1))
    report = judge_now(files_in(tmp_path, png(first), png(second)), SETTINGS, tmp_path, BASE).report
    assert "nearly the same as" in report.images[1].reasons[0]


def test_different_drawings_are_no_duplicates(tmp_path: Path) -> None:
    contents = [png(drawing(n)) for n in range(12)]
    report = judge_now(files_in(tmp_path, *contents), SETTINGS, tmp_path, BASE).report
    assert not [reason for image in report.images for reason in image.reasons if "same" in reason]


EXAMPLES = Path(__file__).parents[2] / "examples" / "characters"


@pytest.mark.parametrize("name", sorted(folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()))
def test_an_example_character_passes_without_a_rejection(name: str, tmp_path: Path) -> None:
    paths = sorted(path for path in (EXAMPLES / name).rglob("*") if path.suffix in (".png", ".jpg"))
    report = judge_now([SourceFile(path.name, path) for path in paths], SETTINGS, tmp_path, BASE).report
    assert [image for image in report.images if image.verdict == "reject"] == []


async def test_no_images_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetRejected, match="no images were sent"):
        await judge([], SETTINGS, tmp_path, BASE)


async def test_one_image_is_refused_as_too_few(tmp_path: Path) -> None:
    with pytest.raises(DatasetRejected, match="1 of 1 images can be used, at least 5 are needed"):
        await judge(files_in(tmp_path, png(drawing(1))), SETTINGS, tmp_path, BASE)


async def test_five_hundred_images_are_refused_before_any_is_opened(tmp_path: Path) -> None:
    absent = [SourceFile(f"{n}.png", tmp_path / "absent") for n in range(500)]
    with pytest.raises(DatasetRejected, match="500 images were sent, more than the 100"):
        await judge(absent, SETTINGS, tmp_path, BASE)


async def test_every_rejected_image_is_pointed_at(tmp_path: Path) -> None:
    contents = [png(drawing(n)) for n in range(3)] + [b"words", header_declaring(30_000, 30_000)]
    with pytest.raises(DatasetRejected) as caught:
        await judge(files_in(tmp_path, *contents), SETTINGS, tmp_path, BASE)
    assert [error["pointer"] for error in caught.value.errors] == ["/images/3", "/images/4"]


def test_few_images_bring_advice(tmp_path: Path) -> None:
    contents = [png(drawing(n)) for n in range(6)]
    report = judge_now(files_in(tmp_path, *contents), SETTINGS, tmp_path, BASE).report
    assert report.advice[0].startswith("6 usable images are few")


def test_a_picture_of_other_colours_than_all_others_is_a_hint(tmp_path: Path) -> None:
    base = drawing(1)
    alike = [base.rotate(angle, fillcolor=(120, 120, 120)) for angle in range(0, 45, 5)]
    stranger = Image.eval(drawing(50), lambda value: 255 - value).point(lambda value: 255 if value > 128 else 0)
    contents = [png(image) for image in (*alike, stranger)]
    report = judge_now(files_in(tmp_path, *contents), SETTINGS, tmp_path, BASE).report
    odd = [image.position for image in report.images if any("unlike the other" in reason for reason in image.reasons)]
    assert odd == [len(alike)]


def test_a_phone_photo_with_a_preview_beside_it_is_no_animation(tmp_path: Path) -> None:
    buffer = BytesIO()
    drawing(1).save(buffer, "MPO", save_all=True, append_images=[drawing(2, (64, 64))])
    assert verdict_on(tmp_path, buffer.getvalue()).is_usable
