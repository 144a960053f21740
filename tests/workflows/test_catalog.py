"""The catalogue of the repository itself, and what happens to one that does not fit together."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from controlplane.errors import InvalidTemplate, NotFound, Unprocessable
from controlplane.workflows.binding import bind
from controlplane.workflows.catalog import PURPOSES, Catalog

FOLDER = Path(__file__).parents[2] / "workflow_templates"


@pytest.fixture(scope="module")
def catalog():
    return Catalog.load(FOLDER)


@pytest.fixture
def folder(tmp_path):
    copy = tmp_path / "templates"
    shutil.copytree(FOLDER, copy)
    return copy


def names():
    return sorted(path.parent.name for path in FOLDER.glob("*/manifest.yaml"))


def recipes(**steps):
    return yaml.safe_dump({"sketch": {name: {"params": {"steps": count}} for name, count in steps.items()}})


@pytest.mark.parametrize("name", names())
def test_the_example_of_every_template_can_be_bound(catalog, name):
    bound = bind(catalog.template(name), json.loads((FOLDER / name / "example.json").read_text()))
    assert set(bound.output_nodes) <= set(bound.graph)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_the_sketch_base_has_a_template_for_every_purpose(catalog, purpose):
    assert catalog.template_for("sketch", purpose).kind == PURPOSES[purpose]


@pytest.mark.parametrize("name", ["sketch_image", "sketch_video", "sketch_video_from_image"])
def test_sampler_defaults_agree_with_the_base_model(catalog, name):
    spec, sampler = catalog.template(name).inputs, catalog.model("sketch").sampler
    assert spec["cfg"].default == sampler.cfg


@pytest.mark.parametrize("name", ["sketch_image", "sketch_video", "sketch_video_from_image"])
def test_the_default_size_is_the_base_models(catalog, name):
    spec, model = catalog.template(name).inputs, catalog.model("sketch")
    assert (spec["width"].default, spec["height"].default) == (model.width, model.height)


@pytest.mark.parametrize("name", ["sketch_video", "sketch_video_from_image"])
def test_a_video_template_says_that_it_is_not_a_video_model(catalog, name):
    assert "not a video model" in catalog.template(name).description


def test_a_training_needs_the_trainer_and_the_checkpoint(catalog):
    needs = catalog.needs(catalog.template("train_lora"), "sketch")
    assert (needs["trainer"], needs["models"]) == ("sketch", {"checkpoints": ["sketch_base.safetensors"]})


def test_an_unknown_workflow_is_answered_with_the_known_ones(catalog):
    with pytest.raises(NotFound, match="sketch_image"):
        catalog.template("oil_painting")


def test_an_unknown_base_is_answered_with_the_known_ones(catalog):
    with pytest.raises(Unprocessable, match="sketch"):
        catalog.model("oil")


def test_an_unknown_recipe_is_refused(catalog):
    with pytest.raises(Unprocessable, match="leisurely"):
        catalog.recipe("sketch", "leisurely")


def test_a_recipe_has_a_digest_of_its_parameters(folder):
    (folder / "recipes.yaml").write_text(recipes(standard=10, fast=5))
    before = Catalog.load(folder).recipe("sketch", "fast").digest
    (folder / "recipes.yaml").write_text(recipes(standard=10, fast=6))
    assert Catalog.load(folder).recipe("sketch", "fast").digest != before


def test_the_default_recipe_is_the_base_models(folder):
    (folder / "recipes.yaml").write_text(recipes(standard=10, fast=5))
    assert Catalog.load(folder).recipe("sketch").name == "standard"


def test_the_default_recipe_must_be_there(folder):
    (folder / "recipes.yaml").write_text(recipes(fast=5))
    with pytest.raises(InvalidTemplate, match="standard"):
        Catalog.load(folder)


def test_a_number_that_yaml_reads_as_text_is_refused(folder):
    (folder / "recipes.yaml").write_text("sketch: {fast: {params: {learning_rate: 1e-3}}}\n")
    with pytest.raises(InvalidTemplate, match="learning_rate"):
        Catalog.load(folder)


def test_recipes_of_an_unknown_base_are_refused(folder):
    (folder / "recipes.yaml").write_text("oil: {fast: {params: {steps: 1}}}\n")
    with pytest.raises(InvalidTemplate, match="oil"):
        Catalog.load(folder)


@pytest.mark.parametrize("name", ["no_such", "train_lora"])
def test_a_base_model_must_name_a_fitting_template(folder, name):
    models = yaml.safe_load((folder / "models.yaml").read_text())
    models[0]["templates"]["image"] = name
    (folder / "models.yaml").write_text(yaml.safe_dump(models))
    with pytest.raises(InvalidTemplate, match=name):
        Catalog.load(folder)
