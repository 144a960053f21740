"""A trainer that is done at once: prints what sd-scripts prints and writes a small, valid LoRA of the sketch base."""
# ruff: noqa: T201 (its output is its protocol)

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

MODULE = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
STEPS = 4
STEP_SECONDS = 0.1


def main() -> int:
    job = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    print("running training", flush=True)
    print(f"  total optimization steps: {STEPS}", flush=True)
    for step in range(1, STEPS + 1):
        time.sleep(STEP_SECONDS)
        bar = f"\rsteps:  {100 * step // STEPS}%|###   | {step}/{STEPS} [00:0{step}<00:0{STEPS - step}, 1.00s/it"
        print(f"{bar}, avr_loss={1 / step:.3g}]", end="", file=sys.stderr, flush=True)
    numbers = np.random.default_rng(job["seed"])
    tensors = {
        f"{MODULE}.lora_down.weight": numbers.standard_normal((4, 64)).astype(np.float32),
        f"{MODULE}.lora_up.weight": numbers.standard_normal((64, 4)).astype(np.float32),
        f"{MODULE}.alpha": np.array(4.0, np.float32),
    }
    output = Path(job["output_dir"]) / f"{job['output_name']}.safetensors"
    print(f"\nsaving checkpoint: {output}", flush=True)
    save_file(tensors, output, metadata=job["metadata"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
