"""A trainer for tests: a real process that prints what sd-scripts prints, as its job's parameters tell it to."""
# ruff: noqa: T201 (its output is its protocol)

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> int:
    job = json.loads(Path(sys.argv[sys.argv.index("--config") + 1]).read_text())
    params = job["params"]
    if params.get("note_pid"):
        Path(params["note_pid"]).write_text(str(os.getpid()))
    if params["behaviour"] == "replay":
        return replay(params)
    if params["behaviour"] == "deaf":
        return stay_deaf(params)
    return train(job, params)


def replay(params: dict[str, Any]) -> int:
    """Print a captured log on both streams and end as that run ended."""
    sys.stdout.buffer.write(Path(params["log"] + ".stdout").read_bytes() if "killed" not in params["log"] else b"")
    sys.stdout.flush()
    sys.stderr.buffer.write(Path(params["log"] + ".stderr").read_bytes())
    sys.stderr.flush()
    if params["rc"] < 0:
        os.kill(os.getpid(), -params["rc"])
    return int(params["rc"])


def stay_deaf(params: dict[str, Any]) -> int:
    """Ignore SIGTERM, start a worker that does too, note both pids, and go on for ever."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    print("running training / ...", flush=True)
    Path(params["pids"]).write_text(f"{os.getpid()} {worker.pid}")
    time.sleep(120)
    return 0


def train(job: dict[str, Any], params: dict[str, Any]) -> int:
    images = sorted(Path(job["dataset_dir"]).glob("*.png"))
    if params.get("note_captions"):
        captions = {path.name: path.with_suffix(".txt").read_text() for path in images}
        told = {"job": job, "captions": captions, "env": dict(os.environ)}
        Path(params["note_captions"]).write_text(json.dumps(told))
    print("running training / 学習開始")
    print(f"  num train images * repeats / 学習画像の数×繰り返し回数: {len(images)}")
    total = params.get("steps", 3)
    print(f"  total optimization steps / 学習ステップ数: {total}", flush=True)
    sample_dir = Path(job["output_dir"]) / "sample"
    for step in range(1, total + 1):
        time.sleep(params.get("step_seconds", 0))
        bar = f"\rsteps:  {100 * step // total}%|###   | {step}/{total} [00:0{step}<00:0{total - step}, 1.00s/it"
        loss = params.get("losses", {}).get(str(step), f"{1 / step:.3g}")
        print(f"{bar}, avr_loss={loss}]", end="", file=sys.stderr, flush=True)
        if params.get("sample"):
            sample_dir.mkdir(exist_ok=True)
            path = sample_dir / f"lora_{step:06d}_00.png"
            shutil.copy(images[0], path)
            print(f"saved sample: {path}", flush=True)
    output = Path(job["output_dir"]) / f"{job['output_name']}.safetensors"
    print(f"\nsaving checkpoint: {output}", flush=True)
    if params.get("lora"):
        shutil.copy(params["lora"], output)
    return int(params.get("rc", 0))


if __name__ == "__main__":
    sys.exit(main())
