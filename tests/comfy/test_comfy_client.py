"""The HTTP client: what it sends, and which of a pod's answers mean that a prompt may be running."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from controlplane.comfy.client import ComfyClient
from controlplane.comfy.messages import Incident, Worker
from controlplane.comfy.prompt import sanitise
from controlplane.errors import PodRefused, PodUnreachable
from tests.comfy.comfyui_double import ComfyUIDouble, lines, replay_graph

RECORDED = [line for line in lines("20_prompt_errors") if line["status"] == 400]
PARTIAL = next(line for line in lines("20_prompt_errors") if line["status"] == 200 and line["response"]["node_errors"])


async def test_a_prompt_goes_out_under_our_own_ids(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(), "prompt-1", "client-1")
    assert (double.received[0]["prompt_id"], double.received[0]["client_id"]) == ("prompt-1", "client-1")


async def test_extra_pnginfo_always_holds_a_workflow(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(), "prompt-1", "client-1")
    assert double.received[0]["extra_data"]["extra_pnginfo"] == {"workflow": {"id": "troupe", "nodes": [], "links": []}}


@pytest.mark.parametrize("line", RECORDED, ids=range(len(RECORDED)))
async def test_every_recorded_400_is_a_refusal(
    line: dict[str, Any], client: ComfyClient, double: ComfyUIDouble
) -> None:
    double.answer_submit_with = [(400, line["response"])]
    with pytest.raises(PodRefused):
        await client.submit(replay_graph(), "prompt-1", "client-1")


async def test_a_refusal_tells_the_node_and_the_reason(client: ComfyClient, double: ComfyUIDouble) -> None:
    recorded = next(line for line in RECORDED if "value_bigger_than_max" in str(line["response"]))
    double.answer_submit_with = [(400, recorded["response"])]
    with pytest.raises(PodRefused, match=r"node 2 \(ImageScale\): Value .* bigger than max"):
        await client.submit(replay_graph(), "prompt-1", "client-1")


async def test_a_model_that_this_pod_lacks_is_the_pods_own_matter(client: ComfyClient, double: ComfyUIDouble) -> None:
    recorded = next(line for line in RECORDED if "value_not_in_list" in str(line["response"]))
    double.answer_submit_with = [(400, recorded["response"])]
    with pytest.raises(PodRefused) as refused:
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert refused.value.extra["pod_specific"] is True


async def test_a_missing_input_would_be_refused_by_every_pod(client: ComfyClient, double: ComfyUIDouble) -> None:
    recorded = next(line for line in RECORDED if "required_input_missing" in str(line["response"]))
    double.answer_submit_with = [(400, recorded["response"])]
    with pytest.raises(PodRefused) as refused:
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert refused.value.extra["pod_specific"] is False


@pytest.mark.parametrize(
    ("status", "answer"),
    [(404, "<html>page not found</html>"), (404, {"error": "not found"}), (404, ["none"]), (400, "Bad Request")],
)
async def test_the_words_of_a_proxy_in_front_of_a_pod_are_that_pods_matter(
    status: int, answer: Any, client: ComfyClient, double: ComfyUIDouble
) -> None:
    double.answer_submit_with = [(status, answer)]
    with pytest.raises(PodRefused) as refused:
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert refused.value.extra["pod_specific"] is True


async def test_a_graph_of_which_only_a_part_is_valid_is_refused(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.answer_submit_with = [(200, PARTIAL["response"])]
    with pytest.raises(PodRefused):
        await client.submit(replay_graph(held=True), "prompt-1", "client-1")


async def test_a_partly_valid_graph_is_taken_off_the_pod(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(held=True), "in front", "client-0")
    await double.started.wait()
    double.answer_submit_with = [(200, PARTIAL["response"])]
    with pytest.raises(PodRefused):
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert not (await client.queue()).holds("prompt-1")


async def test_a_500_leaves_open_whether_the_prompt_runs(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.answer_submit_with = [(500, "500 Internal Server Error\n\nServer got itself in trouble")]
    with pytest.raises(PodUnreachable) as doubt:
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert "never_sent" not in doubt.value.extra


async def test_a_refused_connection_means_that_nothing_was_sent(
    session: aiohttp.ClientSession, unused_tcp_port: int
) -> None:
    nobody = ComfyClient(session, f"http://127.0.0.1:{unused_tcp_port}", "token")
    with pytest.raises(PodUnreachable) as doubt:
        await nobody.submit(replay_graph(), "prompt-1", "client-1")
    assert doubt.value.extra["never_sent"] is True


async def test_a_wrong_token_is_a_refusal(double: ComfyUIDouble, session: aiohttp.ClientSession) -> None:
    with pytest.raises(PodRefused, match="token"):
        await ComfyClient(session, double.url, "wrong").queue()


async def test_a_finished_prompt_is_in_the_history(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(held=True), "prompt-1", "client-1")
    await double.started.wait()
    before = await client.history("prompt-1")
    double.released.set()
    while (finished := await client.history("prompt-1")) is None:
        pass
    assert (before, finished.how) == (None, "succeeded")


async def test_a_waiting_prompt_is_taken_back_at_once(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(held=True), "running", "client-1")
    await double.started.wait()
    await client.submit(replay_graph(), "waiting", "client-2")
    assert await client.take_back("waiting") is True


async def test_taking_back_a_running_prompt_is_not_confirmed_at_once(
    client: ComfyClient, double: ComfyUIDouble
) -> None:
    double.deaf = True
    await client.submit(replay_graph(held=True), "running", "client-1")
    await double.started.wait()
    assert await client.take_back("running") is False


async def test_taking_back_one_prompt_leaves_the_running_one_alone(client: ComfyClient, double: ComfyUIDouble) -> None:
    await client.submit(replay_graph(held=True), "running", "client-1")
    await double.started.wait()
    await client.take_back("another")
    assert not double.interrupted.is_set()


async def test_an_input_file_lands_in_its_folder(client: ComfyClient, double: ComfyUIDouble) -> None:
    assert await client.upload("inputs/still.png", b"bytes", "image/png") == "inputs/still.png"
    assert double.uploads == {"inputs/still.png": b"bytes"}


async def test_an_input_file_kept_under_another_name_is_an_error(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.rename_uploads = True
    with pytest.raises(PodRefused, match=r"other still\.png"):
        await client.upload("still.png", b"bytes", "image/png")


@pytest.mark.parametrize(
    "graph",
    [
        {},
        {"1": []},
        {"1": {"inputs": {}}},
        {"1": {"class_type": "SaveImage"}},
        {"1": {"class_type": "SaveImage", "inputs": None}},
        {"1": {"class_type": "", "inputs": {}}},
        {"": {"class_type": "SaveImage", "inputs": {}}},
        {1: {"class_type": "SaveImage", "inputs": {}}},
        {"1": {"class_type": "KSampler", "inputs": {"cfg": float("nan")}}},
        {"1": {"class_type": "KSampler", "inputs": {"cfg": {"__value__": [float("inf")]}}}},
    ],
)
def test_a_graph_that_could_kill_a_worker_never_leaves(graph: dict[Any, Any]) -> None:
    with pytest.raises(PodRefused):
        sanitise(graph)


def test_a_node_keeps_class_inputs_and_title_only() -> None:
    node = {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "t", "more": 1}, "is_changed": ["x"]}
    assert sanitise({"1": node}) == {"1": {"class_type": "A", "inputs": {"x": 1}, "_meta": {"title": "t"}}}


INCIDENT = {
    "prompt_id": "prompt-1",
    "code": "zombie_worker",
    "detail": "The worker thread died.",
    "at": 1_795_000_000.0,
    "log_tail": ["first", "last"],
}


async def test_an_incident_says_what_befell_comfyui_under_a_prompt(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.incidents["prompt-1"] = INCIDENT
    assert await client.incident("prompt-1") == Incident("zombie_worker", "The worker thread died.", ("first", "last"))


async def test_a_prompt_that_nothing_befell_has_no_incident(client: ComfyClient, double: ComfyUIDouble) -> None:
    assert await client.incident("prompt-1") is None


async def test_the_log_tail_is_asked_for_by_lines(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.log = ["one", "two", "three"]
    assert await client.log_tail(2) == ("two", "three")


async def test_a_pod_without_an_agent_has_no_log(client: ComfyClient, double: ComfyUIDouble) -> None:
    assert await client.log_tail(2) == ()


async def test_the_node_pack_says_what_the_worker_does(client: ComfyClient, double: ComfyUIDouble) -> None:
    double.worker = {"worker_alive": True, "prompt_id": "p", "beat_age_seconds": 2}
    assert await client.worker() == Worker(True, "p", 2.0)


@pytest.mark.parametrize(("code", "kept"), [("comfyui_down", True), ("draining", True), ("comfyui_silent", False)])
async def test_an_agents_503_says_whether_the_prompt_was_kept_from_comfyui(
    client: ComfyClient, double: ComfyUIDouble, code: str, kept: bool
) -> None:
    double.away, double.away_code = True, code
    with pytest.raises(PodUnreachable) as raised:
        await client.submit(replay_graph(), "prompt-1", "client-1")
    assert raised.value.extra.get("never_sent", False) is kept


async def test_an_input_file_that_meets_a_restart_is_not_refused_for_good(
    client: ComfyClient, double: ComfyUIDouble
) -> None:
    double.away = True
    with pytest.raises(PodUnreachable):
        await client.upload("a.png", b"bytes", "image/png")


async def test_a_refused_connection_is_told_apart_from_other_silence(
    client: ComfyClient, double: ComfyUIDouble
) -> None:
    await double.stop()
    with pytest.raises(PodUnreachable) as raised:
        await client.queue()
    assert raised.value.extra["refused"] is True
