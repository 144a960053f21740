"""`python -m sketch_base`: rebuild the sketch base from nothing (vocabulary, autoencoder, latents, U-Net, one file)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from comfy_nodes.sketch.architecture import TOKENIZER_FOLDER

from . import assemble, latents, tokenizer, train_base, train_vae

VAE_GATE_DB = 24.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".work/base"), help="working files, a few GB")
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=train_base.Recipe.steps)
    parser.add_argument("--parts", type=int, default=16, help="thousands of portraits")
    args = parser.parse_args()
    folder: Path = args.folder
    tokenizer.write(TOKENIZER_FOLDER)
    vae_file, gate = folder / "vae" / "vae.pt", folder / "vae" / "vae_round_trip.json"
    if not vae_file.exists():
        train_vae.train(folder / "vae", args.vae_steps, batch=16, pool_size=12000)
    figures = train_vae.round_trip(latents.load_vae(vae_file))
    gate.write_text(json.dumps(figures, indent=2) + "\n")
    assemble.RESULTS.mkdir(parents=True, exist_ok=True)
    train_vae.round_trip_sheet(latents.load_vae(vae_file), assemble.RESULTS / "vae_round_trip.png")
    print(f"autoencoder round trip: {figures}")
    if figures["psnr_db"] < VAE_GATE_DB:
        raise SystemExit(f"the autoencoder is below {VAE_GATE_DB} dB: no U-Net is trained on it")
    if not (folder / "latents").exists():
        latents.write_parts(latents.load_vae(vae_file), folder / "latents", 0, args.parts, workers=2)
    published = folder / "sketch_base.safetensors"
    recipe = train_base.Recipe(steps=args.steps)
    train_base.train(folder, recipe, published, save_every=500, grid_every=1000)
    print(assemble.assemble(published, folder, args.steps))


if __name__ == "__main__":
    main()
