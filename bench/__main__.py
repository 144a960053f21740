"""``python -m bench``: every part one after the other; tables on the screen, figures as JSON where asked."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import loop

CHECKPOINT = loop.ROOT / "pod_images" / "embedded" / "models" / "checkpoints" / "sketch_base.safetensors"
JUDGES = ("identity", "prompt")
ENGINE = ("overhead", "throughput", "scale", "placement")


def main() -> None:
    """Run the chosen parts one after the other, so that none steals cores from another."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", default=["loop", *JUDGES, *ENGINE], help=f"loop, {', '.join((*JUDGES, *ENGINE))} (all)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the loop (3)")
    parser.add_argument("--recipe", default="fast", help="training recipe (fast)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    figures: dict[str, object] = {}
    for part in options.parts:
        print(f"\n== {part}", flush=True)
        if part == "loop":
            figures[part] = loop.run(options.rounds, options.recipe)
        elif part in JUDGES:
            figures[part] = _figures_of(part, "--checkpoint", str(CHECKPOINT), "--recipe", options.recipe)
        else:
            figures[part] = _figures_of(part)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def _figures_of(part: str, *arguments: str) -> object:
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"bench.{part}", *arguments, "--json", str(figures)]
        subprocess.run(command, check=True, cwd=loop.ROOT)
        return json.loads(figures.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
