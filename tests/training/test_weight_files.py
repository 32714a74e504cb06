"""Weights in every wrapping that other tools give them; names and shapes without the values."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoint import assembled, diffusers_folder, inputs, official

from training import base_weights, diffusers_names, pretrained, setup, weight_files
from utils.errors import UserError

NAME = weight_files.STEMS[0]


def prefixed(prefix):
    return lambda state: {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize("wrap", [
    prefixed("_orig_mod."), prefixed("module."), prefixed("module._orig_mod."),
    lambda state: {"state_dict": prefixed("model.")(state), "epoch": 3},
    lambda state: {"state_dict": prefixed("net._orig_mod.")(state)},
    lambda state: {"model_state_dict": state}, lambda state: {"ema": prefixed("module.")(state)},
    lambda state: {key.replace("blocks.0.", "blocks.0._orig_mod."): value
                   for key, value in state.items()},
])
def test_wrapped_weights_are_the_same_weights(tmp_path, wrap):
    theirs = official(tmp_path / "a.pt", wrap=wrap)
    assert torch.equal(assembled(tmp_path / "a.pt", 4)(*inputs(4)), theirs(*inputs(4)))


def test_what_is_no_dit_names_its_first_keys(tmp_path):
    torch.save({"state_dict": {f"encoder.{i}.weight": torch.zeros(1) for i in range(5)}},
               tmp_path / "a.pt")
    with pytest.raises(UserError, match="it has no pos_embed; its first keys are "
                       "'encoder.0.weight', 'encoder.1.weight', 'encoder.2.weight'"):
        pretrained.load_weights(tmp_path / "a.pt")
    with pytest.raises(UserError, match="holds x more than once"):
        weight_files.official_names({"x": 1, "module.x": 2}, "a.pt")


def test_a_class_table_without_a_null_row_is_kept(tmp_path):
    """Trained by other code on 3 classes without guidance: 3 rows for --num-classes 3."""
    def without_null(state):
        state["y_embedder.embedding_table.weight"] = state[base_weights.CLASS_TABLE][:3]
        return state

    theirs = official(tmp_path / "a.pt", wrap=without_null)
    table = theirs.y_embedder.embedding_table.weight[:3]
    ours = assembled(tmp_path / "a.pt", 4).y_embedder.embedding_table.weight
    assert torch.equal(ours[:3], table) and torch.allclose(ours[3], table.mean(0))
    options = setup.ModelOptions("DiT-T/4", 3, 0, str(tmp_path / "a.pt"))
    weights = pretrained.load_weights(options.weights_path)
    note = base_weights.describe_class_table(weights, {"num_classes": 3})
    assert "3 rows for 3 classes: kept, and the mean of its rows is added" in note
    assert "every class starts as its last row" in base_weights.describe_class_table(
        weights, {"num_classes": 7})
    assert base_weights.describe_class_table(weights, {"num_classes": 2}) is None


def variant(folder):
    state = load_file(folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.safetensors").unlink()
    save_file({key: value.half() for key, value in state.items()},
              folder / f"{NAME}.fp16.safetensors")


def shards(folder, names=("one-of-two.safetensors", "two-of-two.safetensors")):
    state = load_file(folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.safetensors").unlink()
    where = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        save_file({key: state[key] for key in state if where[key] == name}, folder / name)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))


def pickled_shards(folder):
    """As accelerate and transformers write them."""
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    state = load_file(folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.safetensors").unlink()
    write_pickled_shards(folder, state, names)


def write_pickled_shards(folder, state, names):
    folder.mkdir(exist_ok=True)
    where = {key: names[i % 2] for i, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if where[key] == name}, folder / name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("change, tolerance", [
    (variant, 0.01), (shards, 1e-5), (pickled_shards, 1e-5)])
def test_variants_and_shards_of_diffusers_folders(tmp_path, change, tolerance):
    theirs = diffusers_folder(tmp_path)
    change(tmp_path)
    x, t, y = inputs(4)
    with torch.no_grad():
        a, b = assembled(tmp_path, 4)(x, t, y), theirs(x, timestep=t, class_labels=y).sample
    assert (a - b).abs().max() <= tolerance * b.abs().max()
    before = pretrained.sha256_of_weights(tmp_path)
    assert len(before) == 64 and before == pretrained.sha256_of_weights(tmp_path)


def test_shards_that_are_missing_or_elsewhere(tmp_path):
    diffusers_folder(tmp_path)
    shards(tmp_path)
    (tmp_path / "two-of-two.safetensors").unlink()
    with pytest.raises(UserError, match=r"lists two-of-two.safetensors, .* \(1 of 2 files"):
        pretrained.load_weights(tmp_path)
    index = tmp_path / f"{NAME}.safetensors.index.json"
    for content in ({"weight_map": {"a": "../../secret"}}, {"weight_map": {}}, [], {"x": 1}):
        index.write_text(json.dumps(content))
        with pytest.raises(UserError, match="not a list of weight files"):
            pretrained.load_weights(tmp_path)


def test_pickled_shards_of_official_names(tmp_path):
    """Without config.json; and what is no tensor in one of them never runs."""
    theirs = official(tmp_path / "a.pt")
    names = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    write_pickled_shards(tmp_path / "d", theirs.state_dict(), names)
    assert torch.equal(assembled(tmp_path / "d", 4)(*inputs(4)), theirs(*inputs(4)))
    torch.save({"x": Evil()}, tmp_path / "d" / names[1])
    with pytest.raises(UserError, match=f"{names[1]}: refused, its pickle holds print"):
        pretrained.load_weights(tmp_path / "d")
    torch.save([1], tmp_path / "d" / names[1])
    with pytest.raises(UserError, match=f"{names[1]}: holds no state dict"):
        pretrained.load_weights(tmp_path / "d")
    (tmp_path / "d" / "pytorch_model.bin.index.json").unlink()
    with pytest.raises(UserError, match=f"{names[0]}: one of several files, but their index "
                                        "pytorch_model.bin.index.json is missing"):
        pretrained.load_weights(tmp_path / "d")


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize("kind", ["pickle", "safetensors", "diffusers"])
def test_headers_have_the_names_and_shapes_and_no_values(tmp_path, kind):
    path = tmp_path / "a.pt"
    if kind == "diffusers":
        path = tmp_path / "d"
        diffusers_folder(path)
    else:
        model = official(path)
        if kind == "safetensors":
            path = tmp_path / "a.safetensors"
            save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    whole, headers = pretrained.load_weights(path), pretrained.load_weights(path, headers_only=True)
    assert {k: v.shape for k, v in whole.tensors.items()} == {
        k: v.shape for k, v in headers.tensors.items()}
    assert all(v.is_meta for v in headers.tensors.values())
    assert (whole.base_grid, whole.numerics) == (headers.base_grid, headers.numerics)


def test_embedders_without_values_count_as_equal():
    key = "transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight"
    theirs = {key.format(i): torch.empty(4, 2, device="meta") for i in (0, 1)}
    renamed = diffusers_names.rename_tensors(theirs, "file")
    assert list(renamed) == ["y_embedder.embedding_table.weight"]
