"""Files that carry a graph, and what is said of those that do not."""

import io
import json

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from controlplane.errors import InvalidTemplate
from controlplane.workflows import sources

from .exports import node, png_with, portrait

EDITOR = {"id": "x", "nodes": [{"id": 1, "type": "KSampler"}], "links": [], "version": 0.4}


def webp_with(tag, text):
    exif = Image.Exif()
    exif[tag] = text
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, "WEBP", exif=exif)
    return target.getvalue()


def test_an_api_export_is_read():
    assert sources.read(json.dumps(portrait()).encode()).graph == portrait()


def test_a_byte_order_mark_does_no_harm():
    assert sources.read(b"\xef\xbb\xbf" + json.dumps(portrait()).encode()).graph == portrait()


def test_a_prompt_wrapper_is_unwrapped():
    assert sources.read(json.dumps({"prompt": portrait(), "client_id": "x"}).encode()).graph == portrait()


def test_a_node_called_prompt_is_no_wrapper():
    graph = {"prompt": node("SaveImage")}
    assert sources.api_graph(graph) == graph


def test_a_png_of_comfyui_is_read():
    data = png_with(prompt=json.dumps(portrait()), workflow=json.dumps(EDITOR))
    source = sources.read(data)
    assert (source.graph, source.suffix, source.original) == (portrait(), ".png", data)


def test_a_compressed_text_of_a_png_is_read():
    info = PngInfo()
    info.add_itxt("prompt", json.dumps(portrait()), zip=True)
    target = io.BytesIO()
    Image.new("RGB", (8, 8)).save(target, "PNG", pnginfo=info)
    assert sources.read(target.getvalue()).graph == portrait()


@pytest.mark.parametrize("tag", [0x0110, 0x010F])
def test_an_animated_webp_of_comfyui_is_read(tag):
    source = sources.read(webp_with(tag, f"prompt:{json.dumps(portrait())}"))
    assert (source.graph, source.suffix) == (portrait(), ".webp")


def test_what_older_versions_keep_beside_the_inputs_is_left_out():
    graph = portrait()
    graph["9"]["is_changed"] = [float("nan")]
    assert sources.read(json.dumps(graph).encode()).graph == portrait()


@pytest.mark.parametrize(
    "value", [EDITOR, {"workflow": EDITOR}, {**portrait(), "nodes": []}], ids=["plain", "wrapped", "half"]
)
def test_the_editors_own_format_is_refused_with_the_way_out(value):
    with pytest.raises(InvalidTemplate, match=r"Workflow > Export \(API\)"):
        sources.read(json.dumps(value).encode())


def test_a_picture_with_only_the_editors_format_is_refused_with_the_way_out():
    with pytest.raises(InvalidTemplate, match=r"only the editor's workflow.*Export \(API\)"):
        sources.read(png_with(workflow=json.dumps(EDITOR)))


def test_a_picture_without_a_graph_says_that_it_was_stripped():
    with pytest.raises(InvalidTemplate, match="carries no graph"):
        sources.read(png_with(Comment="nice"))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"hello", b"{", b"[]", b"{}", b'"text"', b"[1]", b'{"a": 1}', b'{"a": {"class_type": 3, "inputs": {}}}',
        b'{"a": {"class_type": "X"}}', b'{"a": {"class_type": "X", "inputs": []}}', b"\xef\xbb\xbf{", b"\x89PNG\r\n",
        b'{"prompt": {}}', b"[" * 100_000, b'{"": {"class_type": "X", "inputs": {}}}', b"{\xff}",
        b'{"a": {"class_type": "X", "inputs": {"x": NaN}}}', b'{"a": {"class_type": "X", "inputs": {"x": "\\u0000"}}}',
        b'{"a": {"class_type": "X", "inputs": {"x": "\\ud800"}}}',
        b'{"a": {"class_type": "X", "inputs": {"x": [[[[[[[[[[1]]]]]]]]]]}}}', png_with(prompt="{"),
        png_with(prompt=json.dumps(portrait()))[:-40],
    ],
)  # fmt: skip
def test_what_is_no_graph_is_refused_in_words(data):
    with pytest.raises(InvalidTemplate) as caught:
        sources.read(data)
    assert len(caught.value.detail) > 20


def test_a_graph_has_a_bounded_number_of_nodes():
    graph = {str(number): node("SaveImage") for number in range(sources.MAX_NODES + 1)}
    with pytest.raises(InvalidTemplate, match="nodes"):
        sources.api_graph(graph)


def test_a_graph_has_a_bounded_size():
    graph = {str(number): node("Text", text="x" * 49_000) for number in range(60)}
    with pytest.raises(InvalidTemplate, match="larger"):
        sources.api_graph(graph)
