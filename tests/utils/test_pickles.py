"""Pickled weights that claim more than they hold."""
import zipfile

import pytest
import torch
from helpers import error_line, script, train_flags
from safetensors.torch import load_file

from utils import pickles
from utils.errors import UserError

WEIGHTS = {"pos_embed": torch.zeros(1, 16, 8), "ema": {"a": torch.arange(6.0).reshape(2, 3)}}


def save(path, content):
    torch.save(content, path)
    return path


def test_what_is_right_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for path in (save(tmp_path / "a.pt", WEIGHTS), tmp_path / "old.pt"):
        content = pickles.load(path)
        assert torch.equal(content["ema"]["a"], WEIGHTS["ema"]["a"])
    transposed = WEIGHTS["ema"]["a"].T      # strides of its own, and all its values
    assert torch.equal(pickles.load(save(tmp_path / "t.pt", {"a": transposed}))["a"], transposed)


@pytest.mark.parametrize("where", [lambda t: {"a": t}, lambda t: {"ema": {"a": t}},
                                   lambda t: {"opt": [{"a": (t,)}]}])
def test_a_shape_over_a_few_bytes(tmp_path, where):
    huge = torch.zeros(1).expand(2 ** 36)
    path = save(tmp_path / "a.pt", where(huge))
    with pytest.raises(UserError, match="a claims 274,877,906,944 bytes .* and holds 4;"):
        pickles.load(path)


def test_many_names_of_one_tensor(tmp_path):
    one = torch.zeros(1000)
    path = save(tmp_path / "a.pt", {str(i): one for i in range(1000)})
    with pytest.raises(UserError, match="its tensors claim 4,000,000 bytes, the file has"):
        pickles.load(path)


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, device="meta")],
                         ids=["sparse", "meta"])
def test_tensors_of_no_plain_numbers(tmp_path, tensor):
    with pytest.raises(UserError, match="a is not a tensor of plain numbers|cannot be read as"):
        pickles.load(save(tmp_path / "a.pt", {"a": tensor}))


def test_an_archive_that_unpacks_to_more(tmp_path):
    plain = save(tmp_path / "a.pt", {"a": torch.zeros(10 ** 6)})
    with zipfile.ZipFile(plain) as archive, \
            zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert (tmp_path / "b.pt").stat().st_size < 10_000
    with pytest.raises(UserError, match="claims to unpack to 4,000,.* do not use it"):
        pickles.load(tmp_path / "b.pt")


def test_a_dict_that_holds_itself(tmp_path):
    content = {"a": torch.zeros(2)}
    content["model"] = content
    assert pickles.load(save(tmp_path / "a.pt", content))["model"]["a"].shape == (2,)


def test_train_blames_the_file(data, vae_folder, pretrained, tmp_path):
    """A class table of 80 GB over one value; as it has a row for each class, it would be copied."""
    found = load_file(pretrained / "checkpoints" / "0000002.safetensors")
    tensors = {key[4:]: value for key, value in found.items() if key.startswith("ema.")}
    tensors["y_embedder.embedding_table.weight"] = torch.zeros(1).expand(2, 10 ** 10)
    tensors["pos_embed"] = torch.zeros(1, 9, 64)
    path = save(tmp_path / "weights.pt", tensors)
    for extra in ((), ("--dry-run",)):
        done = script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                      tmp_path / "r", "--max-steps", 1, *train_flags(path), *extra, expect=2)
        line = error_line(done)
        assert f"{path}: y_embedder.embedding_table.weight claims 80,000,000,000 bytes" in line
        assert "batch" not in line
