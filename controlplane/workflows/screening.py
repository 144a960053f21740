"""Which texts of a template decide what is painted: those are held to the content rules, whatever they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from controlplane.workflows.graph import in_order, is_link
from controlplane.workflows.template import Template
from controlplane.workflows.walking import Use, uses

NEGATIVE_SLOT = 1
MOST_WALKS = 256
GUIDED = frozenset(
    {
        "KSampler", "KSamplerAdvanced", "SamplerCustom", "CFGGuider", "PromptTravelSampler",
        "UltimateSDUpscale", "UltimateSDUpscaleNoUpscale", "FaceDetailer",
    }
)  # fmt: skip
"""Classes known to keep away from ``negative`` by their ``cfg``. What fields a node has proves nothing: ComfyUI ignores
those that its class does not know."""


def wanted_texts(template: Template, values: Mapping[str, Any]) -> list[str]:
    """Every text that a request and the graph itself put into the picture; ``values`` are the inputs in force.

    Left out is only what the server sets, and what goes nowhere but to the negative side of a sampler that keeps away
    from it (guidance of 1 or more): such a text says what is *not* wanted, and its input's name has no say in it.
    """
    walk = _walk_of(template)
    texts = []
    for name, spec in template.inputs.items():
        value = values.get(name, spec.default)
        if spec.internal or not isinstance(value, str) or spec.type == "image":
            continue
        if not spec.targets or not all(walk.only_negative(target.node) for target in spec.targets):
            texts.append(value)
            texts += [target.text for target in spec.targets if target.text is not None]
    return [*texts, *walk.fixed]


def fixed_texts(template: Template) -> list[str]:
    """The texts written into the graph itself that no input replaces, the purely negative ones left out."""
    return list(_walk_of(template).fixed)


def _fixed(template: Template, walk: _Walk) -> list[str]:
    written = {(target.node, target.field) for spec in template.inputs.values() for target in spec.targets}
    return [
        text
        for node_id, node in template.graph.items()
        for field, value in node.inputs.items()
        if (node_id, field) not in written
        if not is_link(value) and not walk.only_negative(node_id)
        for text in _texts_in(value)
    ]


_walks: dict[str, _Walk] = {}
"""By the templates' digests: a walk takes longer than all the rest of accepting a request."""


def _walk_of(template: Template) -> _Walk:
    walk = _walks.get(template.digest)
    if walk is None:
        if len(_walks) >= MOST_WALKS:
            _walks.clear()
        walk = _walks[template.digest] = _Walk(template)
    return walk


class _Walk:
    """Where the texts of one template's nodes end up: worked out from the ends of the graph backwards."""

    def __init__(self, template: Template) -> None:
        self._graph = template.graph
        self._uses = uses(template.graph)
        self._inputs_at = {
            (target.node, target.field): spec for spec in template.inputs.values() for target in spec.targets
        }
        self._negative: set[str] = set()
        """Nodes all of whose outputs end at the negative side of guided samplers."""
        self._negative_second: set[str] = set()
        """Nodes whose second output, the negative one of two, does."""
        for node_id in reversed(in_order(template.graph)):
            if self._all_negative(self._uses[node_id]):
                self._negative.add(node_id)
            if self._all_negative([use for use in self._uses[node_id] if use.slot == NEGATIVE_SLOT]):
                self._negative_second.add(node_id)
        self.fixed: Sequence[str] = tuple(_fixed(template, self))
        """The texts of the graph itself."""

    def only_negative(self, node_id: str) -> bool:
        """Whether all that a node gives ends at the negative side of guided samplers."""
        return node_id in self._negative

    def _all_negative(self, taken: Sequence[Use]) -> bool:
        return bool(taken) and all(self._is_negative(use) for use in taken)

    def _is_negative(self, use: Use) -> bool:
        if use.name != "negative":
            return not use.name.startswith("positive") and use.node in self._negative
        if self._is_guided(use.node):
            return True
        # Nodes such as ControlNetApplyAdvanced take both sides and give both on, in this order.
        return "positive" in self._graph[use.node].inputs and use.node in self._negative_second

    def _is_guided(self, node_id: str) -> bool:
        """Whether a node keeps away from its negative side: its cfg is 1 or more, whatever a request says."""
        if self._graph[node_id].class_type not in GUIDED or not self._at_least_one(node_id, "cfg"):
            return False
        # Guidance that grows from frame to frame begins at this: at 0 the first frame is the negative text's.
        return all(self._at_least_one(one, "min_cfg") for one, node in self._graph.items() if "min_cfg" in node.inputs)

    def _at_least_one(self, node_id: str, field: str) -> bool:
        """Whether a field is 1 or more, whatever a request says."""
        spec = self._inputs_at.get((node_id, field))
        if spec is not None:
            return spec.min is not None and spec.min >= 1
        value = self._graph[node_id].inputs.get(field)
        return isinstance(value, int | float) and not isinstance(value, bool) and value >= 1


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts_in(one)
