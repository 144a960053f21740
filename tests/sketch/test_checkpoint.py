"""The one file: written whole, read back the same, refused with a reason."""

from __future__ import annotations

import pytest
import torch

from comfy_nodes.sketch import checkpoint, keys
from comfy_nodes.sketch.architecture import SKETCH
from comfy_nodes.sketch.tensor_file import read_tensors, write_tensors
from tests.sketch.conftest import build


@pytest.fixture(scope="module")
def saved(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    checkpoint.save(build(), path, {"licence": "Apache-2.0", "title": "small", "seed": "0"}, small)
    return path


def test_a_loaded_file_saves_to_the_same_bytes(saved, small, tmp_path):
    again = tmp_path / "again.safetensors"
    checkpoint.save(checkpoint.load(saved, small), again, checkpoint.read_metadata(saved), small)
    assert again.read_bytes() == saved.read_bytes()


def test_weights_are_stored_in_half_precision(saved):
    odd = {key for key, tensor in read_tensors(saved).items() if tensor.dtype != torch.float16}
    assert odd <= set(keys.CONSTANT_KEYS)


def test_loaded_modules_compute_in_full_precision_without_gradients(saved, small):
    parameters = list(checkpoint.load(saved, small).unet.parameters())
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in parameters)


def test_metadata_is_read_without_the_tensors(saved):
    metadata = checkpoint.read_metadata(saved)
    assert {"format": "pt", "licence": "Apache-2.0", "seed": "0", "title": "small"}.items() <= metadata.items()


def test_a_file_of_other_sizes_is_refused(saved):
    with pytest.raises(ValueError, match="checkpoint"):
        checkpoint.load(saved, SKETCH)


def test_a_file_of_other_sizes_names_them(saved, small):
    assert checkpoint.named_sizes(saved) == small


def test_a_file_that_is_no_safetensors_is_refused(tmp_path, small):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(b"not tensors at all, sorry")
    with pytest.raises(ValueError, match=r"broken\.safetensors"):
        checkpoint.load(path, small)


def test_a_failed_write_leaves_the_old_file(saved, tmp_path):
    path = tmp_path / "kept.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeyError):
        write_tensors(path, {"a": torch.zeros(2, dtype=torch.complex64)}, {})
    assert path.read_bytes() == b"old"


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    path = tmp_path / "own.safetensors"
    tensors = {"b": torch.arange(6, dtype=torch.float16).reshape(2, 3), "a": torch.tensor(1.5), "c": torch.zeros(0)}
    write_tensors(path, tensors, {"naïve": "ümlaut"})
    back = read_tensors(path)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
