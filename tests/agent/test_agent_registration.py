"""What a pod reports, held against what the control plane takes."""

from __future__ import annotations

import json

import pytest

from controlplane.api.reading import parse_json
from controlplane.errors import BadRequest
from pod_images.registration import storable

ODD = {"models": {"loras": ["caf\udce9.safetensors", "good.safetensors"]}, "boot": {"detail": "a\0b", "percent": 1.5}}


def test_a_file_name_that_is_no_utf_8_does_not_keep_a_pod_from_joining() -> None:
    with pytest.raises(BadRequest):
        parse_json(json.dumps(ODD))
    assert parse_json(json.dumps(storable(ODD))) == {
        "models": {"loras": ["caf?.safetensors", "good.safetensors"]},
        "boot": {"detail": "ab", "percent": 1.5},
    }
