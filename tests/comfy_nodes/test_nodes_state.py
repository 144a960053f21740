"""Signs of life: what `/troupe/state` says after which events, without a ComfyUI."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from comfy_nodes import state
from comfy_nodes.comfy_routes import Ear
from comfy_nodes.training.failure import TrainerError

GRAPH = {"4": {"class_type": "KSampler", "inputs": {}}, "5": {"class_type": "VAEDecode", "inputs": {}}}


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts with an idle process that had no trouble."""
    monkeypatch.setattr(state, "_run", None)
    monkeypatch.setattr(state, "_device_error", None)
    monkeypatch.setattr(state, "_problems", {})
    return


def told() -> dict[str, Any]:
    return state.snapshot(True, {"sketch": None, "kohya": "SD_SCRIPTS_DIR is not set"}, ["ab"], state.Machine())


def test_an_idle_process_has_no_ages() -> None:
    found = told()
    assert (found["prompt_id"], found["running_seconds"], found["beat_age_seconds"]) == (None, None, None)


def test_trainers_are_told_apart_by_what_keeps_them() -> None:
    found = told()
    assert found["trainers"] == ["sketch"]
    assert found["trainer_obstacles"] == {"kohya": "SD_SCRIPTS_DIR is not set"}


def test_a_prompt_begins_with_a_sign_of_life() -> None:
    state.running("p1")
    time.sleep(0.02)
    found = told()
    assert found["beat_age_seconds"] == found["running_seconds"]


def test_a_beat_from_any_thread_makes_the_last_sign_of_life_young() -> None:
    state.running("p1")
    time.sleep(0.05)
    thread = threading.Thread(target=state.beat, args=(12.5,))
    thread.start()
    thread.join()
    found = told()
    assert found["beat_age_seconds"] < found["running_seconds"] - 0.03
    assert found["seconds_per_step"] == 12.5


def test_hearing_of_the_same_prompt_again_does_not_restart_its_clock() -> None:
    state.running("p1")
    time.sleep(0.02)
    state.running("p1")
    assert told()["running_seconds"] >= 0.02


def test_the_next_prompt_has_a_clock_of_its_own() -> None:
    state.running("p1")
    state.beat(3.0)
    time.sleep(0.3)
    state.running("p2")
    found = told()
    assert found["running_seconds"] < 0.3
    assert found["seconds_per_step"] is None


def test_a_beat_of_nobody_is_no_prompt() -> None:
    state.beat()
    assert told()["prompt_id"] is None


def test_the_pace_is_time_over_steps() -> None:
    state.running("p1")
    state.at_node("4", "KSampler")
    begun = time.monotonic()
    state.stepped(2)
    time.sleep(0.1)
    state.stepped(4)
    assert 0.05 <= told()["seconds_per_step"] <= (time.monotonic() - begun) / 2


def test_another_nodes_bar_is_not_measured_from_the_last_ones() -> None:
    state.running("p1")
    state.at_node("4", "KSampler")
    state.stepped(1)
    time.sleep(0.1)
    state.at_node("5", "VAEDecode")
    state.stepped(2)
    assert told()["seconds_per_step"] is None


DEAD = [
    "RuntimeError: CUDA error: an illegal memory access was encountered",
    "torch.AcceleratorError: CUDA error: device-side assert triggered",
    "RuntimeError: CUDA error: unspecified launch failure",
    "RuntimeError: HIP error: invalid device function",
    "CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`",
]
ALIVE = [
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
    "RuntimeError: CUDA error: out of memory",
    "ValueError: a character named CUDA",
]


@pytest.mark.parametrize("text", DEAD)
def test_the_words_of_a_dead_device_are_kept(text: str) -> None:
    state.note_error(text)
    assert told()["device_error"] == text


@pytest.mark.parametrize("text", ALIVE)
def test_a_survivable_error_is_not_kept(text: str) -> None:
    state.note_error(text)
    assert told()["device_error"] is None


def test_a_trainer_that_lost_its_device_did_not_cost_this_process_its_own() -> None:
    error = TrainerError("crashed", "the trainer crashed", ["RuntimeError: CUDA error: an illegal memory access"])
    state.note_error(f"custom_nodes.troupe.training.failure.TrainerError: {error}")
    assert told()["device_error"] is None


def test_the_first_words_of_a_dead_device_stay() -> None:
    state.note_error(DEAD[0])
    state.note_error(DEAD[1])
    assert told()["device_error"] == DEAD[0]


class Queue:
    """ComfyUI's PromptQueue as far as the ear looks at it."""

    def __init__(self) -> None:
        self.mutex = threading.RLock()
        self.currently_running: dict[int, tuple[Any, ...]] = {}
        self.history: dict[str, Any] = {}


class Server:
    def __init__(self) -> None:
        self.prompt_queue = Queue()
        self.sent: list[tuple[Any, ...]] = []

    def send_sync(self, event: Any, data: Any, sid: str | None = None) -> None:
        self.sent.append((event, data, sid))


@pytest.fixture
def server() -> Server:
    """A server that runs GRAPH as prompt p1 and is overheard."""
    made = Server()
    made.prompt_queue.currently_running[0] = (0, "p1", GRAPH, {}, ["5"], {})
    made.send_sync = Ear(made).hearing(made.send_sync)  # type: ignore[method-assign]
    return made


def test_the_running_node_is_known_by_its_class(server: Server) -> None:
    server.send_sync("executing", {"node": "4", "prompt_id": "p1"}, "me")
    assert (told()["prompt_id"], told()["node_id"], told()["node_class"]) == ("p1", "4", "KSampler")


def test_without_a_client_the_node_is_known_by_its_progress(server: Server) -> None:
    nodes = {"4": {"state": "finished"}, "5": {"state": "running"}}
    server.send_sync("progress_state", {"prompt_id": "p1", "nodes": nodes})
    assert told()["node_class"] == "VAEDecode"


def test_a_node_made_while_running_has_no_known_class(server: Server) -> None:
    server.send_sync("executing", {"node": "4.0.1", "prompt_id": "p1"})
    assert (told()["node_id"], told()["node_class"]) == ("4.0.1", None)


def test_a_preview_is_a_sign_of_life(server: Server) -> None:
    server.send_sync("executing", {"node": "4"})
    time.sleep(0.3)
    server.send_sync(1, b"\xff\xd8")
    assert told()["beat_age_seconds"] < 0.3


def test_a_queue_count_is_no_sign_of_life(server: Server) -> None:
    server.send_sync("executing", {"node": "4"})
    time.sleep(0.05)
    server.send_sync("status", {"status": {}})
    assert told()["beat_age_seconds"] >= 0.05


def test_the_end_of_a_prompt_is_seen_in_the_queue(server: Server) -> None:
    server.send_sync("executing", {"node": "4"})
    server.prompt_queue.currently_running.clear()
    server.send_sync("status", {"status": {}})
    assert told()["prompt_id"] is None


def test_a_dead_device_is_found_in_the_history_of_a_prompt_that_nobody_listened_to(server: Server) -> None:
    said = {"exception_type": "RuntimeError", "exception_message": "CUDA error: an illegal memory access\n"}
    server.prompt_queue.history["p1"] = {"status": {"messages": [["execution_error", said]]}}
    server.send_sync("status", {"status": {}})
    assert told()["device_error"] == "RuntimeError: CUDA error: an illegal memory access"


@pytest.mark.parametrize("data", [None, {}, {"nodes": None}, {"value": "x"}])
@pytest.mark.parametrize("event", ["executing", "progress", "progress_state", "status", "something.new", 4])
def test_an_event_is_sent_on_whatever_is_in_it(server: Server, event: Any, data: Any) -> None:
    server.send_sync(event, data, "me")
    assert server.sent == [(event, data, "me")]


def test_a_dead_worker_is_told_by_the_thread_that_spoke_last() -> None:
    server = Server()
    ear = Ear(server)
    worker = threading.Thread(target=ear.hear, args=("executing", {"node": "4"}))
    worker.start()
    worker.join()
    assert not ear.worker_alive()


def test_a_worker_that_was_never_seen_counts_as_alive() -> None:
    assert Ear(Server()).worker_alive()
