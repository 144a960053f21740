"""What each pod lacks for a template: node classes, model files, and values that its own lists do not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from controlplane.domain.pods import Pod
from controlplane.workflows.manifesting import MODEL_FIELDS
from controlplane.workflows.object_info import Facts
from controlplane.workflows.template import Template


@dataclass(frozen=True)
class PodVerdict:
    """What one pod lacks, in words; nothing where it can do the work."""

    pod: str
    state: str
    missing: tuple[str, ...]


def judge(template: Template, pods: Sequence[Pod], facts: Mapping[str, Facts]) -> list[PodVerdict]:
    """A verdict for every pod; ``facts`` are /object_info by pod id, for the pods that were asked."""
    return [
        PodVerdict(pod.name or pod.id, pod.state, tuple(_missing(template, pod, facts.get(pod.id)))) for pod in pods
    ]


def nobody_can(verdicts: Sequence[PodVerdict]) -> str:
    """Why no pod can do the work, in a sentence; empty where one can."""
    if not verdicts:
        return "No pod is up, so node classes, models and values could not be checked."
    if any(not one.missing for one in verdicts):
        return ""
    told = "; ".join(f"{one.pod}: {', '.join(one.missing[:3])}" for one in verdicts[:5])
    return f"No pod can do this yet: {told}."


def _missing(template: Template, pod: Pod, facts: Facts | None) -> Iterator[str]:
    labels = sorted(set(template.labels) - set(pod.labels)) if pod.labels else []
    if labels:
        yield f"is not labelled {', '.join(labels)}"
    for name in sorted(set(template.needs.nodes) - set(pod.node_classes)):
        yield f"node class {name}"
    for folder, files in template.needs.models.items():
        for name in files:
            if name not in pod.models.get(folder, ()):
                yield f"{folder}/{name}"
    if facts is not None:
        yield from _unknown_values(template, facts)


def _unknown_values(template: Template, facts: Facts) -> Iterator[str]:
    set_by_request = {
        (target.node, target.field) for one in template.inputs.values() if one.required for target in one.targets
    }
    for node_id, node in template.graph.items():
        known = facts[node.class_type].fields if node.class_type in facts else {}
        for name, value in node.inputs.items():
            field = known.get(name)
            if field is None or field.type != "COMBO" or not isinstance(value, str):
                continue
            looked_up = name in MODEL_FIELDS.get(node.class_type, {}) or (node_id, name) in set_by_request
            if not looked_up and value not in field.options:
                yield f"{node.class_type}.{name} = {value!r}"
