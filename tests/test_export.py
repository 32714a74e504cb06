"""export.py as a user runs it."""
import json
import os

import original_dit
import pytest
import torch
from helpers import error_line, finetune_flags, script
from safetensors.torch import load_file

from training import base_weights, checkpoint, pretrained


def export(*args, **kwargs):
    return script("export.py", *args, **kwargs)


@pytest.fixture(scope="module")
def adapted(data, vae_folder, pretrained, tmp_path_factory):
    """A checkpoint of `--tune lora`."""
    results = tmp_path_factory.mktemp("lora")
    script("train.py", "--data-path", data, "--vae", vae_folder, "--tune", "lora", "--max-steps", 2,
           "--results-dir", results, *finetune_flags(pretrained), "--lr", 1e-2)
    return results / "000-DiT-T-4" / "checkpoints" / "0000002.safetensors"


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 5, 12, 12), torch.tensor([0, 400, 999]), torch.tensor([0, 1, 2])


def outputs_are_equal(state, path, weights="ema"):
    """Whether the original network computes what the checkpoint's model does."""
    model, _ = pretrained.restore_model(path, weights)
    with torch.no_grad():
        ours, theirs = model(*inputs()), original_dit.forward(state, *inputs(), heads=6)
    return (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_dit_is_what_the_original_code_loads(finetuned, tmp_path, weights):
    """Of a checkpoint with scale vectors."""
    done = export("--ckpt", finetuned, "--format", "dit", "--weights", weights,
                  "--output", tmp_path / "new" / "a.pt")
    state = torch.load(tmp_path / "new" / "a.pt", weights_only=True)
    assert {k: tuple(v.shape) for k, v in state.items()} == original_dit.shapes(384, 4, 4, 5, 2, 3)
    path = finetuned / "checkpoints" / "0000004.safetensors"
    assert pretrained.load_weights(tmp_path / "new" / "a.pt").base_grid == 3
    assert outputs_are_equal(state, path, weights)
    assert not outputs_are_equal(state, path, "raw" if weights == "ema" else "ema")
    assert "accepts images of 256 and 512 pixels: add 48" in done.stdout
    assert os.listdir(tmp_path / "new") == ["a.pt"]


def test_safetensors_of_lora_starts_another_run(adapted, data, vae_folder, tmp_path):
    """Adapters are merged; and the exported table tells the grid of pretraining."""
    path = tmp_path / "a.safetensors"
    export("--ckpt", adapted, "--format", "safetensors", "--output", path)
    assert outputs_are_equal(load_file(path), adapted)
    ours, theirs = pretrained.load_weights(path), pretrained.load_weights(adapted)
    assert ours.base_grid == theirs.base_grid
    assert ours.tensors.keys() == theirs.tensors.keys()
    assert all(torch.equal(ours.tensors[k], theirs.tensors[k]) for k in ours.tensors)


def test_peft(adapted, tmp_path):
    peft = pytest.importorskip("peft", reason="needs the library peft (requirements-dev.txt)")
    export("--ckpt", adapted, "--format", "peft", "--output", tmp_path / "a")
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    metadata = checkpoint.read_metadata(adapted)
    weights = pretrained.load_weights(metadata["base"]["path"])
    base = base_weights.assemble(
        metadata["config"], base_weights.fit_base(weights, metadata["config"]), "base")
    model, _ = pretrained.restore_model(adapted)
    with torch.no_grad():
        before, ours = base(*inputs()), model(*inputs())
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "a").eval()(*inputs())
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()
    assert (ours - before).abs().max() > 1e-4 * ours.abs().max()


def test_the_lines_of_the_model_card_build_the_model_of_peft(adapted, tmp_path):
    pytest.importorskip("peft", reason="needs the library peft (requirements-dev.txt)")
    export("--ckpt", adapted, "--format", "peft", "--repo", "--output", tmp_path / "a")
    card = (tmp_path / "a" / "README.md").read_text()
    lines = [line[4:] for line in card.splitlines() if line.startswith("    ")]
    base = checkpoint.read_metadata(adapted)["base"]
    code = "\n".join(lines).replace("FOLDER", str(tmp_path / "a"))
    names = {}
    exec(code.replace(f"weights/{base['name']}", base["path"]), names)
    model, _ = pretrained.restore_model(adapted)
    with torch.no_grad():
        ours, theirs = model(*inputs()), names["model"].eval()(*inputs())
    assert (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()


@pytest.mark.parametrize("name, files", [
    ("dit", ["DiT-T-4-48x48.pt"]), ("safetensors", ["model.safetensors"]),
    ("peft", ["adapter_config.json", "adapter_model.safetensors"])])
def test_a_folder_to_publish(adapted, tmp_path, name, files):
    export("--ckpt", adapted, "--format", name, "--repo", "--output", tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "a")) == sorted([*files, "README.md", "config.json"])
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    metadata = checkpoint.read_metadata(adapted)
    assert config["model"] == metadata["config"] and config["header"] == metadata["header"]
    assert config["lora"]["rank"] == 8 and config["step"] == 2
    card = (tmp_path / "a" / "README.md").read_text()
    volumes = sum(metadata["class_counts"])
    assert f"`{files[-1]}`: " in card and all(file in card for file in files)
    assert f"| training volumes | {volumes} |" in card
    for text in (card, json.dumps(config)):
        assert str(adapted.parent.parent.parent) not in text and "/tmp" not in text


def test_foreground_tokens_are_named(data, vae_folder, pretrained, tmp_path):
    script("train.py", "--data-path", data, "--vae", vae_folder, "--max-steps", 1, "--results-dir",
           tmp_path / "r", *finetune_flags(pretrained), "--ckpt-every", 1, "--tokens", "foreground")
    done = export("--ckpt", tmp_path / "r", "--format", "dit", "--repo", "--output", tmp_path / "a")
    kept = len(load_file(tmp_path / "r/000-DiT-T-4/checkpoints/0000001.safetensors")[
        "foreground.kept"])
    words = f"trained on {kept} of 9 tokens"
    assert words in done.stderr and words in (tmp_path / "a" / "README.md").read_text()


def test_bad_inputs(finetuned, adapted, tmp_path):
    def refused(words, *flags, output="new", left=()):
        done = export("--output", tmp_path / output, *flags, expect=2)
        assert words in error_line(done)
        assert not (tmp_path / "new").exists()

    dit = ("--format", "dit")
    (tmp_path / "old").write_text("mine")
    refused("old: exists already", "--ckpt", finetuned, *dit, output="old")
    refused("old: exists already", "--ckpt", finetuned, *dit, "--repo", output="old")
    refused("old: exists already", "--ckpt", adapted, "--format", "peft", output="old")
    assert (tmp_path / "old").read_text() == "mine"
    refused("none: no such file", "--ckpt", tmp_path / "none", *dit)
    refused("is of --tune difffit and has no LoRA", "--ckpt", finetuned, "--format", "peft")
    refused("add --repo", "--ckpt", finetuned, *dit, "--metrics", tmp_path / "m.json")
    refused("not valid JSON", "--ckpt", finetuned, *dit, "--repo", "--metrics", tmp_path / "old")
    refused("does not read the base weights", "--ckpt", adapted, "--format", "peft", "--base", "x")
    refused("needs its base weights", "--ckpt", adapted, *dit, "--base", tmp_path / "none")
    refused("--condition: the model of", "--ckpt", finetuned, *dit, "--condition", "age=70")
    path = tmp_path / "0000002.safetensors"
    path.write_bytes(adapted.read_bytes()[:-1])
    refused("not a complete safetensors file", "--ckpt", path, *dit)


@pytest.mark.parametrize("name", ["dit", "safetensors"])
def test_a_full_disk_leaves_nothing(finetuned, tmp_path, name):
    done = export("--ckpt", finetuned, "--format", name, "--output", tmp_path / "a", expect=2,
                  max_file_bytes=100_000)
    assert "export.py: error: " in error_line(done) and os.listdir(tmp_path) == []
