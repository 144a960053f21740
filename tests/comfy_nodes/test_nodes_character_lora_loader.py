"""CharacterLoRALoader against a control plane over real HTTP, and on a desktop without one."""

from __future__ import annotations

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from comfy_nodes.character_lora_loader import CharacterLoRALoader
from comfy_nodes.lora_file import LoraFileError
from comfy_nodes.transport import TransportError

MODEL, CLIP = object(), object()


def load(character_id: str = "mira", version: int = 1, strength: float = 1.0, sha256: str = "") -> dict[str, Any]:
    return CharacterLoRALoader().load(MODEL, CLIP, character_id, version, strength, sha256)


def test_the_lora_is_applied_with_the_strength_asked_for(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    folder_host.known = frozenset({"lora_unet_a"})
    assert load(strength=1.5)["result"] == ((MODEL, "patched", 1.5), (CLIP, "patched", 1.5), "mira")


def test_strength_minus_one_is_the_versions_default(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes(), default_strength=0.7)
    folder_host.known = frozenset({"lora_unet_a"})
    assert load(strength=-1.0)["result"][0] == (MODEL, "patched", 0.7)


def test_strength_zero_returns_the_very_same_objects(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    model, clip, _trigger = load(strength=0.0)["result"]
    assert model is MODEL
    assert clip is CLIP


def test_the_ui_tells_what_was_applied(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    sha256 = linked.add_lora("mira", 3, lora_bytes(("lora_unet_a", "lora_unet_b")))
    folder_host.known = frozenset({"lora_unet_a"})
    assert load(version=3)["ui"]["character"] == [
        {
            "character_id": "mira",
            "version": 3,
            "sha256": sha256,
            "strength": 1.0,
            "matched": 1,
            "total": 2,
            "trigger": "mira",
        }
    ]


def test_version_zero_is_the_active_version(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    linked.add_lora("mira", 2, lora_bytes(up=2.0))
    folder_host.known = frozenset({"lora_unet_a"})
    assert load(version=0)["ui"]["character"][0]["version"] == 2


def test_a_lora_that_matches_nothing_is_an_error_naming_base_and_lora(
    linked: Any, folder_host: Any, lora_bytes: Any
) -> None:
    linked.add_lora("mira", 1, lora_bytes(), base="sdxl")
    with pytest.raises(RuntimeError, match=r"mira version 1 .* base sdxl, and its 1 modules do not fit"):
        load()


def test_a_bound_digest_that_is_not_the_versions_is_refused(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    with pytest.raises(TransportError, match="is not the LoRA"):
        load(sha256="0" * 64)


def test_an_unknown_character_is_told_in_the_control_planes_words(linked: Any, folder_host: Any) -> None:
    with pytest.raises(TransportError, match="no version 1 of nobody"):
        load("nobody")


def test_the_control_plane_may_be_away_for_a_moment(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    linked.faults["/pods/"] = [503, 0]
    folder_host.known = frozenset({"lora_unet_a"})
    assert load()["result"][2] == "mira"


def test_a_digest_that_is_no_digest_never_becomes_a_path(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes(), sha256="../../etc/passwd")
    with pytest.raises(TransportError, match="not understood"):
        load()


def test_a_file_address_of_the_lora_is_not_followed(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes(), url="file:///etc/passwd")
    with pytest.raises(TransportError, match="not an http"):
        load()


def test_is_changed_is_the_bound_digest(unlinked: None) -> None:
    assert CharacterLoRALoader.IS_CHANGED("mira", 1, 1.0, sha256="a" * 64, model=None, clip=None) == "a" * 64


def test_is_changed_follows_the_active_version(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    before = CharacterLoRALoader.IS_CHANGED("mira", 0, 1.0)
    linked.add_lora("mira", 2, lora_bytes(up=2.0))
    assert CharacterLoRALoader.IS_CHANGED("mira", 0, 1.0) != before


def test_without_a_control_plane_a_local_file_is_loaded_by_name(
    unlinked: None, folder_host: Any, lora_bytes: Any
) -> None:
    folder = folder_host.root / "models" / "loras" / "chars"
    folder.mkdir(parents=True)
    (folder / "mira.safetensors").write_bytes(lora_bytes(metadata={"modelspec.trigger_phrase": "mira woman"}))
    folder_host.known = frozenset({"lora_unet_a"})
    assert load("chars/mira.safetensors", strength=-1.0)["result"] == (
        (MODEL, "patched", 1.0),
        (CLIP, "patched", 1.0),
        "mira woman",
    )


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "", "a//b", "..\\x"])
def test_a_local_name_cannot_leave_the_folder(name: str, unlinked: None, folder_host: Any) -> None:
    outside = folder_host.root / "models" / "secret.safetensors"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(b"")
    with pytest.raises(FileNotFoundError):
        load(name)


def test_a_local_pickle_is_refused(unlinked: None, folder_host: Any) -> None:
    folder = folder_host.root / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "bad.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 100)
    with pytest.raises(LoraFileError, match="pickle"):
        load("bad")


def test_a_local_file_that_is_missing_makes_the_result_uncacheable(unlinked: None, folder_host: Any) -> None:
    assert math.isnan(CharacterLoRALoader.IS_CHANGED("nobody", 0, 1.0))


def test_with_a_control_plane_files_of_the_pod_are_out_of_reach(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    folder = folder_host.root / "models" / "loras"
    folder.mkdir(parents=True)
    (folder / "other.safetensors").write_bytes(lora_bytes())
    with pytest.raises(TransportError):
        load("other.safetensors")


def test_the_pod_key_may_lie_in_a_file(
    server: Any, folder_host: Any, lora_bytes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("pod-key-for-tests\n")
    monkeypatch.setenv("TROUPE_CONTROL_PLANE_URL", server.url)
    monkeypatch.delenv("TROUPE_POD_KEY", raising=False)
    monkeypatch.setenv("TROUPE_POD_KEY_FILE", str(key))
    server.add_lora("mira", 1, lora_bytes())
    folder_host.known = frozenset({"lora_unet_a"})
    assert load()["result"][2] == "mira"


def test_what_the_node_shows_is_json(linked: Any, folder_host: Any, lora_bytes: Any) -> None:
    linked.add_lora("mira", 1, lora_bytes())
    folder_host.known = frozenset({"lora_unet_a"})
    assert json.loads(json.dumps(load()["ui"], allow_nan=False))["character"]


def test_a_pod_that_is_about_to_register_waits_for_its_key(
    server: Any, folder_host: Any, lora_bytes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    monkeypatch.setenv("TROUPE_CONTROL_PLANE_URL", server.url)
    monkeypatch.delenv("TROUPE_POD_KEY", raising=False)
    monkeypatch.setenv("TROUPE_POD_KEY_FILE", str(key))
    server.add_lora("mira", 1, lora_bytes())
    folder_host.known = frozenset({"lora_unet_a"})
    threading.Timer(0.3, key.write_text, ["pod-key-for-tests"]).start()
    assert load()["result"][2] == "mira"
