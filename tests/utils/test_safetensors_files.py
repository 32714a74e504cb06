"""Rows of tensors, read without mapping the file: compared with the safetensors library."""
import os

import pytest
import torch
from safetensors.torch import save_file

from utils.safetensors_files import read_places


@pytest.fixture
def tensors():
    return {"b": torch.randn(5, 3, 4), "a": torch.arange(10).reshape(5, 2).byte()}


def test_rows_are_those_of_the_library(tensors, tmp_path):
    save_file(tensors, tmp_path / "f", {"some": "metadata"})
    places = read_places(tmp_path / "f")
    assert places.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert places[name].shape == tensor.shape
        for i in range(5):
            assert torch.equal(torch.from_numpy(places[name].read_row(i)), tensor[i])


def test_a_file_that_became_shorter_or_was_removed(tensors, tmp_path):
    """`b`, the tensor of wider numbers, comes first: 240 bytes; then `a`, 10 bytes."""
    save_file(tensors, tmp_path / "f")
    place = read_places(tmp_path / "f")["b"]
    os.truncate(tmp_path / "f", (tmp_path / "f").stat().st_size - 20)
    place.read_row(3)
    with pytest.raises(OSError, match="f: 10 of 48 bytes are missing"):
        place.read_row(4)
    os.remove(tmp_path / "f")
    with pytest.raises(FileNotFoundError):
        place.read_row(0)
