"""What each pod lacks for a template, told pod by pod."""

from dataclasses import replace

import pytest

from controlplane.domain.pods import Pod
from controlplane.workflows.fleet import judge, nobody_can

from .exports import FACTS, imported, portrait, with_lora

CLASSES = (
    "CheckpointLoaderSimple",
    "CLIPTextEncode",
    "EmptyLatentImage",
    "KSampler",
    "VAEDecode",
    "S3Save",
    "LoraLoader",
)
POD = Pod(
    id="pod_1", project_id="default", instance_id="i", name="pictures", kind="comfyui", address="http://127.0.0.1:1",
    token="t", key_hash="", state="ready", protocol=1, node_classes=CLASSES,
    models={"checkpoints": ["sketch_base.safetensors"], "loras": ["style.safetensors"]}, trainers=(), labels=("image",),
    loras=(), created_at=0.0, last_heartbeat_at=0.0,
)  # fmt: skip


def missing(pod, graph=None, facts=None):
    template = imported(graph or with_lora(portrait())).template
    return judge(template, [pod], {pod.id: facts} if facts else {})[0].missing


def test_a_pod_that_has_everything_lacks_nothing():
    assert missing(POD) == ()


@pytest.mark.parametrize(
    ("pod", "words"),
    [
        (replace(POD, node_classes=CLASSES[1:]), "node class CheckpointLoaderSimple"),
        (replace(POD, models={"checkpoints": ["sketch_base.safetensors"]}), "loras/style.safetensors"),
        (replace(POD, labels=("train",)), "is not labelled image"),
    ],
)
def test_what_a_pod_lacks_is_named(pod, words):
    assert missing(pod) == (words,)


def test_a_value_that_a_pods_own_list_does_not_have_is_named():
    graph = portrait()
    graph["3"]["inputs"]["scheduler"] = "from_tomorrow"
    assert missing(POD, graph, FACTS) == ("KSampler.scheduler = 'from_tomorrow'",)


def test_without_any_pod_that_is_said():
    assert "No pod is up" in nobody_can([])


def test_one_pod_that_can_is_enough():
    verdicts = judge(imported(portrait()).template, [POD, replace(POD, id="pod_2", node_classes=())], {})
    assert nobody_can(verdicts) == ""


def test_if_no_pod_can_every_reason_is_told():
    verdicts = judge(imported(portrait()).template, [replace(POD, labels=("train",))], {})
    assert nobody_can(verdicts) == "No pod can do this yet: pictures: is not labelled image."
