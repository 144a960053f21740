"""The trainer process: read as it prints, stopped with its children, never left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.training import runner
from comfy_nodes.training.failure import TrainerError
from comfy_nodes.training.progress import Event, Step
from comfy_nodes.training.runner import Command

HERE = Path(__file__).parent


def python(code: str, folder: Path) -> Command:
    return Command([sys.executable, "-c", code], folder)


def is_alive(pid: int) -> bool:
    """False for a zombie too: an orphan's new parent may not have reaped it yet."""
    state = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")


def test_events_come_in_the_calling_thread_while_the_trainer_runs(tmp_path: Path) -> None:
    seen: list[tuple[Event, float]] = []
    code = (
        "import sys,time\n"
        "for n in (1,2):\n"
        "  print(f'\\rsteps:  50%|#####     | {n}/2 [00:01<00:01, 1.00s/it, avr_loss=0.5]', end='', file=sys.stderr)\n"
        "  sys.stderr.flush(); time.sleep(0.6)\n"
    )
    finished = runner.run(python(code, tmp_path), lambda event: seen.append((event, time.monotonic())), lambda: None)
    assert [event.step for event, _ in seen if isinstance(event, Step)] == [1, 2]
    assert seen[1][1] - seen[0][1] > 0.3
    assert (finished.returncode, finished.last_step) == (0, Step(2, 2, 1.0, 1.0, 0.5))


def test_the_last_words_of_a_failed_trainer_are_kept(tmp_path: Path) -> None:
    finished = runner.run(python("raise ValueError('why')", tmp_path), lambda _event: None, lambda: None)
    assert (finished.returncode, finished.log[-1]) == (1, "ValueError: why")


def test_a_cancelled_trainer_that_ignores_sigterm_is_gone_with_its_child(tmp_path: Path, eventually: Any) -> None:
    pids = tmp_path / "pids"
    job = tmp_path / "job.json"
    job.write_text(f'{{"params": {{"behaviour": "deaf", "pids": "{pids}"}}}}')
    command = Command([sys.executable, str(HERE / "replay_trainer.py"), "--config", str(job)], tmp_path)
    asked: list[float] = []

    def stop() -> str | None:
        if pids.exists() and not asked:
            asked.append(time.monotonic())
        return "the job was cancelled" if asked else None

    with pytest.raises(TrainerError, match="cancelled: the job was cancelled"):
        runner.run(command, lambda _event: None, stop)
    eventually(lambda: not any(is_alive(int(pid)) for pid in pids.read_text().split()), 3)
    assert time.monotonic() - asked[0] < 10


def test_an_exception_of_the_listener_leaves_no_process_behind(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    note = tmp_path / "pid"
    code = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid()))"
    code += "; print('epoch 1/2', flush=True); time.sleep(60)"

    def listen(_event: Event) -> None:
        raise Stop

    with pytest.raises(Stop):
        runner.run(python(code, tmp_path), listen, lambda: None)
    assert not is_alive(int(note.read_text()))  # reaped before run() returns


def test_a_trainer_does_not_outlive_the_pod_however_the_pod_ends(tmp_path: Path, eventually: Any) -> None:
    note = tmp_path / "pid"
    trainer = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = (
        "import sys; from pathlib import Path; from comfy_nodes.training import runner\n"
        f"command = runner.Command([sys.executable, '-c', {trainer!r}], Path({str(tmp_path)!r}))\n"
        "runner.run(command, lambda event: None, lambda: None)\n"
    )
    pod = subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parents[1])
    eventually(lambda: note.exists() and note.read_text(), 30)
    pod.kill()
    pod.wait()
    eventually(lambda: not is_alive(int(note.read_text())))


def test_a_worker_left_behind_by_a_finished_trainer_is_ended(tmp_path: Path, eventually: Any) -> None:
    code = (
        "import subprocess,sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(f'worker {p.pid}', flush=True)\n"
    )
    finished = runner.run(python(code, tmp_path), lambda _event: None, lambda: None)
    pid = int(next(line for line in finished.log if line.startswith("worker")).split()[1])
    assert finished.returncode == 0
    eventually(lambda: not is_alive(pid), 3)


def test_a_trainer_that_stops_stepping_is_hung(tmp_path: Path) -> None:
    bar = "steps:  10%|# | 1/10 [00:00<00:00, 0.01s/it, avr_loss=0.5]"
    code = f"import time; print({bar!r}, flush=True); time.sleep(60)"
    with pytest.raises(TrainerError, match="hung"):
        runner.run(python(code, tmp_path), lambda _event: None, lambda: None, hung_seconds=0.5)


def test_a_trainer_that_paints_between_two_steps_is_not_taken_for_hanging(tmp_path: Path) -> None:
    bar = "steps:  10%|# | 1/10 [00:00<00:00, 0.01s/it, avr_loss=0.5]"
    code = (
        f"import time; print({bar!r}, flush=True)\nfor n in range(8): print('sampling', n, flush=True); time.sleep(0.3)"
    )
    finished = runner.run(python(code, tmp_path), lambda _event: None, lambda: None, hung_seconds=1.0)
    assert finished.returncode == 0


def test_the_bar_of_a_step_that_does_not_end_is_no_sign_of_life(tmp_path: Path) -> None:
    bar = "steps:  10%|# | 1/10 [00:00<00:00, 0.01s/it, avr_loss=0.5]"
    code = f"import time\nfor n in range(200): print({bar!r}, flush=True); time.sleep(0.1)"
    with pytest.raises(TrainerError, match="hung"):
        runner.run(python(code, tmp_path), lambda _event: None, lambda: None, hung_seconds=1.0)


def test_a_slow_start_is_not_taken_for_hanging(tmp_path: Path) -> None:
    finished = runner.run(
        python("import time; time.sleep(1.2)", tmp_path), lambda _event: None, lambda: None, hung_seconds=0.3
    )
    assert finished.returncode == 0


def test_an_interpreter_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="missing_interpreter"):
        runner.run(Command(["/nowhere/python"], tmp_path), lambda _event: None, lambda: None)


@pytest.mark.parametrize(
    "name",
    [
        "TROUPE_POD_KEY",
        "TROUPE_POD_KEY_FILE",
        "TROUPE_JOIN_TOKEN",
        "RUNPOD_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
    ],
)
def test_the_trainer_does_not_get_the_pods_secrets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "s3cret")
    monkeypatch.setenv("SD_SCRIPTS_TOKENIZERS", "/models/tokenizers")
    code = "import os; print('s3cret' in os.environ.values(), os.environ['SD_SCRIPTS_TOKENIZERS'])"
    assert runner.run(python(code, tmp_path), lambda _event: None, lambda: None).log == ("False /models/tokenizers",)


def test_a_flood_of_output_does_not_block_the_trainer(tmp_path: Path) -> None:
    seen: list[Any] = []
    code = "for n in range(30000): print('epoch 1/2')"
    finished = runner.run(python(code, tmp_path), seen.append, lambda: None)
    assert (finished.returncode, len(seen)) == (0, 30_000)
