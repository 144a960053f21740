"""Templates are checked when they are loaded: a manifest that does not fit its graph never reaches a pod."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from controlplane.errors import InvalidTemplate
from controlplane.workflows import template

FOLDER = Path(__file__).parents[2] / "workflow_templates" / "sketch_image"


@pytest.fixture
def graph():
    return json.loads((FOLDER / "graph.json").read_text())


@pytest.fixture
def manifest():
    return yaml.safe_load((FOLDER / "manifest.yaml").read_text())


def pointers_of(graph, manifest):
    with pytest.raises(InvalidTemplate) as caught:
        template.build(graph, manifest)
    return [fault["pointer"] for fault in caught.value.errors]


def test_an_input_must_name_a_node_that_is_there(graph, manifest):
    manifest["inputs"]["prompt"]["node"] = "99"
    assert pointers_of(graph, manifest) == ["/inputs/prompt/targets/0"]


def test_an_input_must_name_a_field_that_is_there(graph, manifest):
    manifest["inputs"]["prompt"]["field"] = "words"
    assert pointers_of(graph, manifest) == ["/inputs/prompt/targets/0"]


def test_an_input_must_not_cut_a_link(graph, manifest):
    manifest["inputs"]["prompt"]["field"] = "clip"
    assert pointers_of(graph, manifest) == ["/inputs/prompt/targets/0"]


def test_an_unknown_type_is_refused(graph, manifest):
    manifest["inputs"]["prompt"]["type"] = "poem"
    assert pointers_of(graph, manifest) == ["/inputs/prompt/type"]


def test_an_unknown_word_in_the_manifest_is_refused(graph, manifest):
    manifest["inputs"]["prompt"]["maximum"] = 3
    assert pointers_of(graph, manifest) == ["/inputs/prompt/maximum"]


def test_a_default_outside_its_own_range_is_refused(graph, manifest):
    manifest["inputs"]["width"]["default"] = 130
    assert pointers_of(graph, manifest) == ["/inputs/width/default"]


def test_an_output_must_be_there(graph, manifest):
    manifest["outputs"] = [{"node": "99", "kind": "image"}]
    assert pointers_of(graph, manifest) == ["/outputs/0/node"]


def test_needs_must_name_every_class_of_the_graph(graph, manifest):
    manifest["needs"]["nodes"].remove("CharacterLoRALoader")
    assert pointers_of(graph, manifest) == ["/needs/nodes"]


def test_a_text_may_only_name_inputs(graph, manifest):
    manifest["inputs"]["prompt"]["text"] = "{poem}"
    assert pointers_of(graph, manifest) == ["/inputs/prompt/targets/0"]


def test_every_fault_is_told_at_once(graph, manifest):
    manifest["inputs"]["prompt"]["node"] = "99"
    manifest["inputs"]["width"]["default"] = 1
    assert len(pointers_of(graph, manifest)) == 2


def test_the_digest_changes_with_the_manifest(graph, manifest):
    other = deepcopy(manifest)
    other["inputs"]["steps"]["default"] = 21
    assert template.build(graph, manifest).digest != template.build(graph, other).digest


def test_internal_inputs_are_not_public(graph, manifest):
    assert "lora_sha256" not in template.build(graph, manifest).public_inputs


def test_a_folder_must_carry_the_name_of_its_manifest(tmp_path, graph, manifest):
    folder = tmp_path / "another_name"
    folder.mkdir()
    (folder / "graph.json").write_text(json.dumps(graph))
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "example.json").write_text("{}")
    with pytest.raises(InvalidTemplate, match="another_name"):
        template.load(folder)


def test_a_folder_with_broken_json_is_named(tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "graph.json").write_text("{")
    with pytest.raises(InvalidTemplate, match="broken"):
        template.load(folder)
