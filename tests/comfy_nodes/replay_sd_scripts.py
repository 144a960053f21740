"""sd-scripts for tests: takes its arguments and files, prints what it prints, writes what it writes, as planned.

The plan is $REPLAY_PLAN, a list with one entry for each run: {"log": captured run, "rc": n}, {"fail": last line,
"rc": n} or {"steps": n, ...}. What each run was given is noted beside it.
"""
# ruff: noqa: T201 (its output is its protocol)

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import tomllib
from pathlib import Path
from typing import Any


def main() -> int:
    plan_file = Path(os.environ["REPLAY_PLAN"])
    plan = json.loads(plan_file.read_text())
    number = len(list(plan_file.parent.glob("run-*.json")))
    options = read_options(sys.argv[1:])
    noted = {"script": Path(sys.argv[0]).name, "argv": sys.argv, "options": options, "files": files_of(options)}
    (plan_file.parent / f"run-{number}.json").write_text(json.dumps(noted))
    run = plan[number]
    if "log" in run:
        return replay(run)
    if "fail" in run:
        print("Traceback (most recent call last):", file=sys.stderr)
        print(run["fail"], file=sys.stderr, flush=True)
        return die(run["rc"])
    return train(run, options, noted["files"])


def read_options(arguments: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for argument in arguments:
        name, separator, value = argument.removeprefix("--").partition("=")
        found[name] = value if separator else True
    return found


def files_of(options: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = {}
    files["dataset_config"] = tomllib.loads(Path(options["dataset_config"]).read_text(encoding="utf-8"))
    if "sample_prompts" in options:
        files["sample_prompts"] = json.loads(Path(options["sample_prompts"]).read_text(encoding="utf-8"))
    if "resume" in options:
        files["resume"] = sorted(path.name for path in Path(options["resume"]).iterdir())
    return files


def die(rc: int) -> int:
    if rc < 0:
        os.kill(os.getpid(), -rc)
        signal.pause()
    return rc


def replay(run: dict[str, Any]) -> int:
    for stream, ending in ((sys.stdout, ".stdout"), (sys.stderr, ".stderr")):
        path = Path(run["log"] + ending)
        stream.buffer.write(path.read_bytes() if path.exists() else b"")
        stream.flush()
    return die(run["rc"])


def train(run: dict[str, Any], options: dict[str, Any], files: dict[str, Any]) -> int:
    """Epochs of `steps` steps from --initial_step on; the bar counts from 0, as sd-scripts' does after a resume."""
    output = Path(options["output_dir"])
    epochs, steps = int(options["max_train_epochs"]), run.get("steps", 2)
    total, first = epochs * steps, int(options.get("initial_step", 0)) // steps
    print("running training / 学習開始")
    print(f"  num epochs / epoch数: {epochs}")
    print(f"  total optimization steps / 学習ステップ数: {total}", flush=True)
    done = 0
    for epoch in range(first + 1, epochs + 1):
        print(f"\nepoch {epoch}/{epochs}\n", flush=True)
        for _ in range(steps):
            done += 1
            time.sleep(run.get("step_seconds", 0))
            bar = f"\rsteps:  {100 * done // total}%|###   | {done}/{total} [00:01<00:02, 1.00s/it, avr_loss=0.5]"
            print(bar, end="", file=sys.stderr, flush=True)
        if "save_every_n_epochs" in options and epoch < epochs:
            save(run, options, output, f"lora-{epoch:06d}")
            time.sleep(run.get("save_seconds", 0))
        if "sample_prompts" in options and epoch % int(options["sample_every_n_epochs"]) == 0:
            paint(output, epoch, files)
        if run.get("die_after_epoch") == epoch:
            print("torch.OutOfMemoryError: CUDA out of memory.", file=sys.stderr, flush=True)
            return die(run.get("rc", 1))
    save(run, {}, output, "lora")
    print("model saved.", flush=True)
    return int(run.get("rc", 0))


def save(run: dict[str, Any], options: dict[str, Any], output: Path, name: str) -> None:
    print(f"\nsaving checkpoint: {output}/{name}.safetensors", flush=True)
    shutil.copy(run["lora"], output / f"{name}.safetensors")
    if options.get("save_state"):
        folder = output / f"{name}-state"
        folder.mkdir()
        for file in ("train_state.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"):
            (folder / file).write_text(f"{file} of {name}")


def paint(output: Path, epoch: int, files: dict[str, Any]) -> None:
    print("\ngenerating sample images at step / サンプル画像生成 ステップ: 1", flush=True)
    (output / "sample").mkdir(exist_ok=True)
    images = Path(files["dataset_config"]["datasets"][0]["subsets"][0]["image_dir"])
    for index, prompt in enumerate(files["sample_prompts"]):
        name = f"lora_e{epoch:06d}_{index:02d}_20261120192054_{prompt['seed']}.png"
        shutil.copy(sorted(images.glob("*.png"))[0], output / "sample" / name)


if __name__ == "__main__":
    sys.exit(main())
