"""Every kind of refusal, word for word as recorded."""

from __future__ import annotations

from typing import Any

import pytest

from .client import Client
from .recordings import recording, without_tracebacks

pytestmark = pytest.mark.lab


def _cases() -> list[Any]:
    cases, note = [], ""
    for line in recording("20").lines:
        if line["kind"] == "note":
            note = line["note"]
        elif line["path"] == "/prompt" and isinstance(line["request"], dict) and line["status"] != 403:
            cases.append(pytest.param(line, id=f"{len(cases)} {note}"))
    return cases


@pytest.mark.parametrize("line", _cases())
async def test_a_posted_graph_gets_the_recorded_answer(client: Client, line: dict[str, Any]) -> None:
    status, answer = await client.call("POST", "/prompt", json=line["request"])
    recorded = line["response"]
    if isinstance(answer, str):
        assert (status, answer) == (line["status"], recorded["_raw"])
    else:
        found = {key: without_tracebacks(answer.get(key)) for key in ("error", "node_errors")}
        expected = {key: without_tracebacks(recorded.get(key)) for key in ("error", "node_errors")}
        assert (status, found) == (line["status"], expected)


@pytest.mark.parametrize(("sent", "kept"), [(42, "42"), (None, "None"), ("any text", "any text")])
async def test_a_prompt_id_is_taken_as_text(client: Client, sent: Any, kept: str) -> None:
    _, answer = await client.submit(picture(1), prompt_id=sent)
    assert answer["prompt_id"] == kept


@pytest.mark.parametrize(
    ("name", "value", "kept"), [("width", 33.7, 33), ("width", "34", 34), ("filename_prefix", 5, "5")]
)
async def test_literals_are_coerced_and_history_keeps_the_coerced_copy(
    client: Client, name: str, value: Any, kept: Any
) -> None:
    graph = picture(2)
    node = next(node for node in graph.values() if name in node["inputs"])
    node["inputs"][name] = value
    entry = await client.run(graph)
    node_id = next(key for key, other in graph.items() if other is node)
    assert entry["prompt"][2][node_id]["inputs"][name] == kept


async def test_a_body_that_is_no_json_is_a_plain_500(client: Client) -> None:
    status, answer = await client.call("POST", "/prompt", data=b"{not json")
    assert (status, answer) == (500, "500 Internal Server Error\n\nServer got itself in trouble")


async def test_a_required_input_of_an_unreachable_node_does_not_matter(client: Client) -> None:
    graph = {**picture(3), "77": {"class_type": "ImageScale", "inputs": {}}}
    status, _ = await client.submit(graph)
    assert status == 200


async def test_a_file_that_this_pod_lacks_is_refused_at_submit(client: Client) -> None:
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "absent.safetensors"}}}
    graph["2"] = {"class_type": "VAEDecode", "inputs": {"vae": ["1", 2], "samples": ["3", 0]}}
    graph["3"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}}
    _, answer = await client.submit(graph)
    assert answer["node_errors"]["1"]["errors"][0]["type"] == "value_not_in_list"


async def test_a_list_with_more_than_twenty_options_is_not_shown(client: Client) -> None:
    graph = picture(4)
    graph["5"] = {"class_type": "LabOptions", "inputs": {"choice": "absent"}}
    _, answer = await client.submit(graph)
    error = answer["node_errors"]["5"]["errors"][0]
    assert (error["details"], error["extra_info"]["input_config"]) == (
        "choice: 'absent' not in (list of length 30)",
        None,
    )


def picture(colour: int) -> dict[str, Any]:
    """The smallest graph that ends in an output."""
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": colour}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "suite"}},
    }
