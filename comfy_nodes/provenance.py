"""What a file says about how it was made: the graph without secrets, the characters in it, and that it is synthetic."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SOFTWARE = "Troupe"
# IPTC's term for a picture that a trained model made; stock agencies and platforms read it.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_SECRET_WORD = re.compile(
    r"(?:^|_)(?:(?:api)?keys?|tokens?|secrets?|ur[li]s?|passw(?:or)?ds?|credentials?|auth(?:orization)?|bearer|cookie)"
    r"(?:$|_)"
)
# A value that is an address with a query is likely signed, whatever its input is called.
_SIGNED_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]*://\S*([?@]\S*)", re.IGNORECASE)


@dataclass(frozen=True)
class Recipe:
    """The texts to embed in a file: only what determines the picture, so that equal requests give equal bytes."""

    prompt: str
    troupe: str


def recipe_of(graph: Mapping[str, Any] | None) -> Recipe:
    """The recipe of an API-format graph; None (a host without hidden inputs) gives an empty graph."""
    clean = without_secrets(graph or {})
    prompt = json.dumps(clean)
    troupe = {
        "schema": 1,
        "ai_generated": True,
        "digital_source_type": DIGITAL_SOURCE_TYPE,
        "characters": _characters(clean),
        "graph_sha256": hashlib.sha256(json.dumps(clean, sort_keys=True).encode()).hexdigest(),
    }
    return Recipe(prompt, json.dumps(troupe))


def without_secrets(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The graph without the inputs whose name or value looks like a secret, and without members the server ignores."""
    clean: dict[str, Any] = {}
    for node_id, node in graph.items():
        if not isinstance(node, Mapping):
            continue
        inputs = node.get("inputs") or {}
        kept = {name: value for name, value in inputs.items() if not _is_secret(str(name), value)}
        clean[str(node_id)] = {"class_type": node.get("class_type"), "inputs": kept}
        title = (node.get("_meta") or {}).get("title")
        if isinstance(title, str):
            clean[str(node_id)]["_meta"] = {"title": title}
    return clean


def xmp() -> bytes:
    """An XMP packet that says the picture came from a trained model."""
    packet = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" \
xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="{SOFTWARE}" \
Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""
    return packet.encode()


def _is_secret(name: str, value: Any) -> bool:
    if isinstance(value, list):
        return False  # a link to another node
    words = re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)).lower()
    if _SECRET_WORD.search(words):
        return True
    return isinstance(value, str) and _SIGNED_ADDRESS.match(value) is not None


def _characters(graph: Mapping[str, Any]) -> list[dict[str, Any]]:
    names = ("character_id", "version", "sha256", "strength")
    loaders = [node["inputs"] for node in graph.values() if node["class_type"] == "CharacterLoRALoader"]
    return [{name: inputs[name] for name in names if name in inputs} for inputs in loaders]
