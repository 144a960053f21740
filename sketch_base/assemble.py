"""Put the finished weights into the one file, and draw the artefacts that show what they can do."""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from comfy_nodes.sketch import checkpoint, sampling
from comfy_nodes.sketch.architecture import SketchModules

from .drawing import BACKGROUNDS, CLOTHES, EXPRESSIONS
from .train_base import SEED

WEIGHTS = Path("pod_images/embedded/models/checkpoints/sketch_base.safetensors")
RESULTS = Path("sketch_base/results")
PEOPLE = (
    "woman, red long hair, light skin, green eyes",
    "man, black short hair, dark skin, brown eyes, beard",
    "person, blond curly hair, tan skin, blue eyes",
    "robot, bald head, silver skin, blue eyes",
    "creature, white spiky hair, green skin, amber eyes",
    "woman, purple bob hair, pale skin, grey eyes, glasses",
)


def sheet_prompts() -> list[str]:
    """The contact sheet's prompts: every person in eight scenes, expressions and clothes taken in turn."""
    prompts = []
    for row, person in enumerate(PEOPLE):
        for column in range(8):
            colour, noun = CLOTHES[(row + column) % len(CLOTHES)]
            expression = EXPRESSIONS[(row + 2 * column) % len(EXPRESSIONS)]
            prompts.append(f"{person}, {expression}, {colour} {noun}, {BACKGROUNDS[column]}")
    return prompts


def contact_sheet(modules: SketchModules, path: Path, steps: int = 20, cfg: float = 4.0) -> None:
    """Pictures of `sheet_prompts`, one seed per row, eight to a row."""
    prompts = sheet_prompts()
    sheet = Image.new("RGB", (8 * 128, len(PEOPLE) * 128))
    for row in range(len(PEOPLE)):
        wanted = sampling.encode_prompt(modules, prompts[row * 8 : row * 8 + 8])
        blank = sampling.encode_prompt(modules, [""] * 8)
        latent = sampling.sample(
            modules, wanted, blank, sampling.empty_latent(modules, 128, 128, 8), row + 1, steps, cfg
        )
        pictures = (sampling.decode(modules, latent).numpy() * 255).round().astype("uint8")
        for column, picture in enumerate(pictures):
            sheet.paste(Image.fromarray(picture), (column * 128, row * 128))
    sheet.save(path, optimize=True)


def read_curve(path: Path) -> list[tuple[int, float]]:
    """(step, mean loss of the 25 steps before it) of a training log."""
    with path.open() as lines:
        return [(int(row[0]), float(row[1])) for row in csv.reader(lines)]


def loss_curve(curve: list[tuple[int, float]], path: Path) -> None:
    """A plain line drawing of the loss over the steps, with a grid line for every tenth of the range."""
    width, height, left = 900, 360, 60
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    low, high = min(v for _, v in curve), sorted(v for _, v in curve)[-max(2, len(curve) // 50)]
    last = curve[-1][0]
    for i in range(11):
        y = 20 + (height - 50) * i / 10
        pen.line([(left, y), (width - 10, y)], fill=(225, 225, 225))
        pen.text((8, y - 6), f"{high - (high - low) * i / 10:.4f}", fill="black")
    for i in range(5):
        pen.text((left + (width - left - 40) * i / 4, height - 22), str(round(last * i / 4)), fill="black")
    points = [
        (left + (width - left - 10) * s / last, 20 + (height - 50) * (1 - min(1.0, (v - low) / (high - low))))
        for s, v in curve
    ]
    pen.line(points, fill=(40, 90, 200), width=2)
    image.save(path, optimize=True)


def assemble(source: Path, folder: Path, steps: int) -> str:
    """Write the final file from a published one, and the artefacts beside it; the file's sha256."""
    modules = checkpoint.load(source)
    WEIGHTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(parents=True, exist_ok=True)
    size = checkpoint.save(
        modules,
        WEIGHTS,
        {
            "modelspec.title": "Troupe sketch base",
            "modelspec.license": "Apache-2.0",
            "modelspec.resolution": "128x128",
            "modelspec.prediction_type": "v",
            "troupe.steps": str(steps),
            "troupe.seed": str(SEED),
        },
    )
    if size > checkpoint.MAX_BYTES:
        raise ValueError(f"{WEIGHTS} has {size} bytes, more than {checkpoint.MAX_BYTES}")
    curve = read_curve(folder / "log.csv")
    loss_curve(curve, RESULTS / "loss_curve.png")
    (RESULTS / "loss_curve.csv").write_text("step,loss\n" + "".join(f"{s},{v:.5f}\n" for s, v in curve))
    (RESULTS / "vae_round_trip.json").write_text((folder / "vae" / "vae_round_trip.json").read_text())
    contact_sheet(checkpoint.load(WEIGHTS), RESULTS / "contact_sheet.png")
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path(".work/sketch_base.safetensors"))
    parser.add_argument("--folder", type=Path, default=Path(".work/base"))
    parser.add_argument("--steps", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(assemble(args.source, args.folder, args.steps))


if __name__ == "__main__":
    main()
