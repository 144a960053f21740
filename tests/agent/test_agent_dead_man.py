"""The dead-man switch: what an agent does that is cut off from its control plane."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import pytest

from pod_images.agent import runpod
from pod_images.agent.dead_man import DeadMan
from tests.launchers.runpod_double import ACCOUNT_KEY, Failure, RunPodDouble, runpod_double

from .conftest import Launch
from .running import ControlPlane, is_alive, until

SHORT = ("--dead-man-minutes", "0.02")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_silence_is_counted_from_the_start_and_from_every_sign_of_life() -> None:
    clock = Clock()
    switch = DeadMan(60, clock)
    clock.now += 59
    assert not switch.expired()
    switch.heard()
    clock.now += 59
    assert not switch.expired()
    clock.now += 1
    assert switch.expired()


async def test_a_cut_off_agent_ends_its_pod_on_runpod_after_delivering_its_job(
    start: Launch, control_plane: ControlPlane
) -> None:
    control_plane.delivers = False
    async with runpod_double() as double:
        pod_id = double.plant("ours")
        environment = {**double.environment_of(pod_id), "TROUPE_RUNPOD_URL": double.url}
        port = free_port()
        arguments = ("--control-plane", control_plane.url, "--port", str(port), *SHORT)
        agent = await start(*arguments, environment=environment)
        assert agent.address == f"https://{pod_id}-{port}.proxy.runpod.net"
        await until(lambda: "ready" in control_plane.states)
        told = control_plane.registrations[-1]
        assert (told["provider"], told["provider_id"], told["address"]) == ("runpod", pod_id, agent.address)
        agent.address = f"http://127.0.0.1:{port}"
        await agent.submit("FakeDeliver", url=control_plane.url + "/deliver")
        pid = await agent.comfyui_pid()
        control_plane.silent = True
        await until(lambda: "has been silent" in agent.log())
        assert (double.count("DELETE"), agent.process.returncode) == (0, None), "a job is still running"
        control_plane.delivers = True
        assert (await agent.ended(), control_plane.delivered) == (0, 1)
        assert (double.names(), double.count("DELETE"), is_alive(pid)) == ([], 1, False)
        assert double.faults == []


async def test_a_job_that_passes_its_deadline_no_longer_keeps_a_cut_off_pod_alive(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url, *SHORT, "--job-deadline-minutes", "0.02")
    await agent.submit("FakeSleep", seconds=600)
    control_plane.silent = True
    assert await agent.ended() == 3
    assert "billing may go on" in agent.log()


async def test_an_agent_that_hears_from_its_control_plane_again_takes_work_again(
    start: Launch, control_plane: ControlPlane
) -> None:
    agent = await start("--control-plane", control_plane.url, *SHORT)
    await agent.submit("FakeSleep", seconds=600)
    waiting = await agent.submit("FakeSleep", seconds=0)
    control_plane.silent = True
    assert (await agent.incident(waiting))["code"] == "drained"
    assert (await agent.call("POST", "/prompt", {"prompt": {}}))[0] == 503
    control_plane.silent = False
    await until(lambda: "this pod goes on" in agent.log())
    await agent.submit("FakeSleep", seconds=0)


async def test_a_control_plane_that_refuses_the_join_token_counts_as_silent(
    start: Launch, control_plane: ControlPlane
) -> None:
    control_plane.silent = True
    agent = await start("--control-plane", control_plane.url, *SHORT, ready=False)
    assert await agent.ended() == 3


@pytest.fixture
async def double() -> AsyncIterator[RunPodDouble]:
    async with runpod_double() as double:
        yield double
        assert double.faults == []


async def test_ending_a_pod_is_tried_until_runpod_answers(double: RunPodDouble) -> None:
    pod_id = double.plant("ours")
    double.fail("DELETE", Failure(503), Failure(cut=True), Failure(429, headers={"Retry-After": "0"}))
    assert await runpod.terminate(runpod.Place(pod_id, double.url), double.pod_keys[pod_id], first_backoff=0.01)
    assert (double.names(), double.count("DELETE")) == ([], 4)


async def test_a_pod_that_is_already_gone_counts_as_ended(double: RunPodDouble) -> None:
    assert await runpod.terminate(runpod.Place("gone", double.url), ACCOUNT_KEY, first_backoff=0.01)


async def test_a_refused_key_is_not_tried_again(double: RunPodDouble) -> None:
    pod_id = double.plant("ours")
    assert not await runpod.terminate(runpod.Place(pod_id, double.url), "rpa_wrong", first_backoff=0.01)
    assert double.count("DELETE") == 1


async def test_a_pod_without_a_key_of_its_own_cannot_end_itself() -> None:
    assert not await runpod.terminate(runpod.Place("pod"), "")


def test_the_public_address_on_runpod_is_made_of_the_pods_id_and_port() -> None:
    place = runpod.place_in({"RUNPOD_POD_ID": "abc123"})
    assert place is not None
    assert (place.address(8700), place.api) == (
        "https://abc123-8700.proxy.runpod.net",
        "https://api.runpod.io/v2",
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
