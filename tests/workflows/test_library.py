"""Imported templates on disk: what a restart finds, versions, removal, and what an interrupted import leaves."""

import json

import pytest

from controlplane.settings import Settings
from controlplane.workflows import library
from controlplane.workflows.catalog import Catalog
from controlplane.workflows.sources import Source

from .exports import imported, portrait

SHIPPED = Settings().templates


def stored(folder, steps=20, name="mine"):
    graph = portrait()
    graph["3"]["inputs"]["steps"] = steps
    source = Source(graph, json.dumps(graph).encode(), ".json")
    return library.store(folder, imported(graph, name=name), source)


def test_a_stored_template_is_read_back_as_the_same_version(tmp_path):
    assert stored(tmp_path).digest == imported(portrait()).template.digest


def test_a_restart_finds_imported_templates_beside_the_shipped_ones(tmp_path):
    digest = stored(tmp_path).digest
    assert Catalog.load(SHIPPED, tmp_path).template("mine").digest == digest


def test_the_original_is_kept(tmp_path):
    stored(tmp_path)
    assert json.loads((tmp_path / "mine" / "original.json").read_text()) == portrait()


def test_other_content_becomes_the_current_version(tmp_path):
    stored(tmp_path)
    digest = stored(tmp_path, steps=30).digest
    assert library.load_all(tmp_path)["mine"].digest == digest


def test_the_version_before_is_kept(tmp_path):
    first = stored(tmp_path).digest
    second = stored(tmp_path, steps=30).digest
    stored(tmp_path, steps=40)
    assert library.versions(tmp_path, "mine") == [first, second]


def test_a_removed_template_is_gone_with_its_versions(tmp_path):
    stored(tmp_path)
    stored(tmp_path, steps=30)
    library.remove(tmp_path, "mine")
    assert (library.load_all(tmp_path), library.versions(tmp_path, "mine")) == ({}, [])


def test_an_import_that_broke_off_between_two_versions_is_undone(tmp_path):
    first = stored(tmp_path).digest
    stored(tmp_path, steps=30)
    (tmp_path / "mine").rename(tmp_path / ".incoming-x")  # as a crash between the two renames leaves it
    assert library.load_all(tmp_path)["mine"].digest == first
    assert not (tmp_path / ".incoming-x").exists()


def test_a_template_that_somebody_broke_by_hand_keeps_nothing_from_starting(tmp_path, caplog):
    stored(tmp_path)
    stored(tmp_path, name="other")
    (tmp_path / "mine" / "manifest.yaml").write_text("name: [")
    assert list(library.load_all(tmp_path)) == ["other"]
    assert "mine is left out" in caplog.text


def test_an_edited_manifest_is_a_version_of_its_own(tmp_path):
    digest = stored(tmp_path).digest
    path = tmp_path / "mine" / "manifest.yaml"
    path.write_text(path.read_text().replace("title: Mine", "title: My own"))
    assert library.load_all(tmp_path)["mine"].digest != digest


def test_a_shipped_template_wins_over_an_imported_one_of_its_name(tmp_path):
    stored(tmp_path, name="sketch_image")
    catalog = Catalog.load(SHIPPED, tmp_path)
    assert catalog.template("sketch_image").digest == Catalog.load(SHIPPED).template("sketch_image").digest


def test_what_was_read_once_does_not_change_while_it_is_read():
    catalog = Catalog.load(SHIPPED)
    before = catalog.templates.state()
    catalog.templates.put(imported(portrait()).template)
    assert ("mine" in before, "mine" in catalog.templates) == (False, True)


@pytest.mark.parametrize("name", ["sketch_image", "mine"])
def test_only_the_templates_of_the_code_are_shipped(tmp_path, name):
    stored(tmp_path)
    assert Catalog.load(SHIPPED, tmp_path).templates.is_shipped(name) == (name == "sketch_image")
