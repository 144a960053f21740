"""A simulated pod speaks ComfyUI's protocol: the contract suite's own cases, as far as they need no real nodes."""

# ruff: noqa: F401 - the imported cases are run here, with this module's `client`

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from bench.http_wire import Caller
from bench.simulated_pod import NODE_CLASSES, Counts, Pace, SimulatedPod
from bench.simulated_saving import Saver
from tests.contract.client import Client, PodUnderTest
from tests.contract.recordings import recording
from tests.contract.test_queue import (
    test_a_deleted_waiting_prompt_leaves_no_trace,
    test_a_history_entry_can_be_deleted,
    test_an_interrupt_for_a_waiting_prompt_hits_nothing,
    test_an_interrupt_without_a_body_stops_what_runs,
    test_an_unknown_id_has_an_empty_history,
    test_clearing_the_queue_leaves_the_running_prompt,
    test_commands_for_unknown_ids_are_quietly_fine,
    test_deleting_the_running_prompt_does_nothing,
    test_front_puts_a_prompt_before_the_others,
    test_history_is_empty_until_a_prompt_has_finished,
    test_interrupting_nothing_does_not_stop_the_next_prompt,
    test_max_items_gives_the_newest_entries,
    test_queue_items_show_number_id_graph_extra_data_and_outputs,
    test_the_prompt_after_an_interrupted_one_runs,
    test_the_same_id_twice_runs_twice_and_the_second_one_stays,
    test_the_whole_history_can_be_cleared,
    test_waiting_prompts_run_by_number_then_by_id,
)
from tests.contract.test_sockets import (
    test_feature_flags_are_answered_with_the_pods_own,
    test_the_first_message_is_a_status_with_the_client_id,
    test_without_a_client_id_the_pod_makes_one,
)
from tests.contract.test_validation import picture

TOKEN = "simulated-token"


@pytest.fixture
async def pod() -> AsyncIterator[SimulatedPod]:
    saver = Saver(Caller("http://127.0.0.1:9"), "inline")
    pod = SimulatedPod("simulated", TOKEN, Pace(run=0.25), Counts(), saver, (*NODE_CLASSES, "ImageScale", "LabSleep"))
    await pod.serve()
    yield pod
    pod.close()


@pytest.fixture
async def client(pod: SimulatedPod) -> AsyncIterator[Client]:
    under_test = PodUnderTest("simulated", pod.address, TOKEN)
    async with aiohttp.ClientSession(headers=under_test.headers) as session:
        yield Client(session, under_test)


async def test_without_its_token_it_answers_nothing(pod: SimulatedPod) -> None:
    assert (await Caller(pod.address).call("GET", "/queue"))[0] == 401


async def test_a_success_is_told_in_the_recorded_order(client: Client) -> None:
    graph = picture(1)
    async with client.socket() as socket:
        _, answer = await client.submit(graph, client_id=socket.client_id)
        told = [event["type"] for event in await socket.end_of(answer["prompt_id"])]
    recorded = [event["type"] for event in recording("01").events() if event["type"] != "executed"]
    assert [one for one in told if one != "executed"][:4] == recorded[:4]
    assert told[-3:] == ["execution_success", "status", "executing"]


async def test_another_lora_is_a_load_and_the_same_is_none(client: Client, pod: SimulatedPod) -> None:
    for sha256 in ("a", "a", "b"):
        graph = picture(1)
        graph["9"] = {"class_type": "CharacterLoRALoader", "inputs": {"sha256": sha256}}
        await client.run(graph)
    assert pod._counts.lora_loads == 2
