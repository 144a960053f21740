"""What node classes may rely on: hidden inputs, lists, change marks, and surviving their own worst behaviour."""

from __future__ import annotations

from typing import Any

import pytest

from .client import Client
from .recordings import recoloured, recording

pytestmark = pytest.mark.lab


def cached(entry: dict[str, Any]) -> list[str]:
    nodes: list[str] = dict(map(tuple, entry["status"]["messages"]))["execution_cached"]["nodes"]
    return nodes


async def test_hidden_inputs_give_graph_workflow_and_node_id(client: Client) -> None:
    graph = recoloured(recording("09").graph())
    entry = await client.run(graph, client_id="me", extra_data={"extra_pnginfo": {"foo": 1}})
    assert entry["outputs"]["9"]["text"] == [
        "{'prompt_keys': ['1', '2', '3', '9'], 'extra_pnginfo': {'foo': 1}, 'uid': '9', 'dyn': 'DynamicPrompt'}"
    ]


async def test_a_node_runs_once_per_item_of_a_list_output(client: Client) -> None:
    graph = {
        "1": {"class_type": "LabLists", "inputs": {"text": "a b c"}},
        "2": {"class_type": "LabShow", "inputs": {"text": ["1", 0], "prefix": "-"}},
    }
    entry = await client.run(graph, client_id="me")
    assert entry["outputs"]["2"]["text"] == ["-a", "-b", "-c"]


async def test_a_node_that_wants_lists_runs_once(client: Client) -> None:
    graph = {
        "1": {"class_type": "LabLists", "inputs": {"text": "d e f g"}},
        "2": {"class_type": "LabGather", "inputs": {"text": ["1", 0]}},
    }
    entry = await client.run(graph, client_id="me")
    assert entry["outputs"]["2"]["count"] == [4]


async def test_an_absent_optional_input_takes_the_functions_default(client: Client) -> None:
    graph = {
        "1": {"class_type": "LabLists", "inputs": {"text": "h"}},
        "2": {"class_type": "LabShow", "inputs": {"text": ["1", 0]}},
    }
    entry = await client.run(graph, client_id="me")
    assert entry["outputs"]["2"]["text"] == ["none:h"]


async def test_a_wrapped_list_is_a_literal(client: Client) -> None:
    graph = {
        "1": {"class_type": "LabLists", "inputs": {"text": "i"}},
        "2": {"class_type": "LabShow", "inputs": {"text": ["1", 0], "options": {"__value__": ["x", "y", "z"]}}},
    }
    entry = await client.run(graph, client_id="me")
    assert entry["outputs"]["2"]["options"] == [["x", "y", "z"]]


async def test_a_node_with_an_unchanged_mark_is_cached(client: Client) -> None:
    graph = {"1": {"class_type": "LabChanged", "inputs": {"token": "a"}}}
    await client.run(graph, client_id="me")
    assert cached(await client.run(graph, client_id="me")) == ["1"]


async def test_a_node_whose_mark_is_nan_always_runs(client: Client) -> None:
    graph = {"1": {"class_type": "LabChanged", "inputs": {"token": "always"}}}
    runs = [(await client.run(graph, client_id="me"))["outputs"]["1"]["runs"][0] for _ in range(2)]
    assert runs[1] == runs[0] + 1


async def test_node_ids_do_not_matter_to_the_cache(client: Client) -> None:
    first = recoloured(recording("01").graph())
    await client.run(first, client_id="me")
    renamed = {f"a{key}": node for key, node in first.items()}
    for node in renamed.values():
        node["inputs"] = {
            name: [f"a{value[0]}", value[1]] if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
    assert cached(await client.run(renamed, client_id="me")) == ["a1", "a2", "a3"]


async def test_the_cache_keeps_only_the_last_prompts_nodes(client: Client) -> None:
    first, second = recoloured(recording("01").graph()), recoloured(recording("01").graph())
    for graph in (first, second):
        await client.run(graph, client_id="me")
    assert cached(await client.run(first, client_id="me")) == []


async def test_only_the_asked_outputs_run(client: Client) -> None:
    graph = recoloured(recording("01").graph())
    graph["4"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    entry = await client.run(graph, client_id="me", partial_execution_targets=["4"])
    assert list(entry["outputs"]) == ["4"]


async def test_an_error_shows_the_inputs_that_caused_it(client: Client) -> None:
    entry = await client.run(recoloured(recording("06").graph()), client_id="me")
    inputs = entry["status"]["messages"][-1][1]["current_inputs"]
    assert (inputs["kind"], inputs["image"][0].startswith("tensor(")) == (["value"], True)


async def test_a_ui_value_that_is_no_list_fails_its_node(client: Client) -> None:
    entry = await client.run(bad_ui("nonlist"), client_id="me")
    assert entry["status"]["messages"][-1][0] == "execution_error"


async def test_a_ui_text_is_split_into_letters(client: Client) -> None:
    entry = await client.run(bad_ui("string"), client_id="me")
    assert entry["outputs"]["9"]["lab"] == ["a", "b", "c"]


def bad_ui(kind: str) -> dict[str, Any]:
    graph = {"1": recording("01").graph()["1"]}
    graph["9"] = {"class_type": "LabBadUI", "inputs": {"image": ["1", 0], "kind": kind}}
    return recoloured(graph)
