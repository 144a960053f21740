"""Graphs in API format: what is read, what is refused, and what a digest depends on."""

import pytest

from controlplane.errors import InvalidTemplate
from controlplane.workflows import graph


def two_nodes():
    return {
        "1": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "2": {"class_type": "VAEDecode", "inputs": {"samples": ["1", 0]}, "_meta": {"title": "Decode"}},
    }


def test_a_graph_survives_reading_and_writing():
    assert graph.to_api(graph.parse(two_nodes())) == two_nodes()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({}, "non-empty object"),
        ([], "non-empty object"),
        ({"nodes": [], "links": []}, "Export"),
        ({"1": {"inputs": {}}}, "class_type"),
        ({"1": {"class_type": "KSampler"}}, "no inputs object"),
        ({"1": {"class_type": "KSampler", "inputs": {"model": ["9", 0]}}}, "not there"),
        ({"1": {"class_type": "A", "inputs": {"x": ["1", 0]}}}, "circle"),
    ],
)
def test_a_broken_graph_is_refused_in_words(raw, words):
    with pytest.raises(InvalidTemplate, match=words):
        graph.parse(raw)


def test_the_digest_does_not_depend_on_the_order_of_keys():
    shuffled = {"2": two_nodes()["2"], "1": {"inputs": two_nodes()["1"]["inputs"], "class_type": "EmptyLatentImage"}}
    assert graph.digest(two_nodes()) == graph.digest(shuffled)


def test_the_digest_changes_with_any_value():
    other = two_nodes()
    other["1"]["inputs"]["width"] = 72
    assert graph.digest(two_nodes()) != graph.digest(other)


def test_a_list_of_two_numbers_is_not_a_link():
    assert not graph.is_link([1, 0])


def test_nan_has_no_canonical_spelling():
    with pytest.raises(ValueError, match="JSON"):
        graph.digest({"x": float("nan")})
