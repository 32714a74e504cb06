"""train.py --tune bitfit and lora, and what uses their checkpoints."""
import json

import pytest
import torch
from helpers import error_line, finetune_flags, script
from safetensors.torch import load_file
from test_cluster import together

from training import checkpoint, finetuning, pretrained

LORA = ("--tune", "lora", "--lora-rank", 2, "--lora-alpha", 3, "--lora-targets", "qkv", "mlp",
        "--lr", 1e-2)


@pytest.fixture(scope="module")
def command(data, vae_folder, pretrained):
    return ("--data-path", data, "--vae", vae_folder, *finetune_flags(pretrained))


@pytest.fixture(scope="module")
def adapted(command, tmp_path_factory):
    """A results folder with a run of `--tune lora` of 4 steps."""
    results = tmp_path_factory.mktemp("lora")
    script("train.py", *command, *LORA, "--max-steps", 4, "--results-dir", results)
    return results


def saved(results, step=4, run="000-DiT-T-4"):
    return results / run / "checkpoints" / f"{step:07d}.safetensors"


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_lora_checkpoint_holds_what_trained(adapted, pretrained):
    path = saved(adapted)
    metadata = checkpoint.read_metadata(path)
    assert metadata["lora"] == {"rank": 2, "alpha": 3.0, "targets": ["mlp", "qkv"]}
    assert metadata["base"]["name"] == "0000002.safetensors" and "lora_rank" not in metadata
    names = {key.split(".", 1)[1] for key in load_file(path)}
    assert {finetuning.parameter_kind(name) for name in names} == {"LoRA", "class table"}
    assert len(names) == 4 * 3 * 2 + 1          # blocks, layers, A and B
    log = (adapted / "000-DiT-T-4" / "log.txt").read_text()
    assert "LoRA of rank 2 beside mlp.fc1, mlp.fc2, attn.qkv of every block, alpha 3" in log
    flags = json.loads((adapted / "000-DiT-T-4" / "args.json").read_text())
    assert (flags["lora_rank"], flags["lora_alpha"], flags["lora_targets"]) == (
        2, 3.0, ["mlp", "qkv"])


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_restored_model_has_the_products_in_its_weights(adapted, pretrained, weights):
    from training.pretrained import restore_model
    model, _ = restore_model(saved(adapted), weights)
    base, _ = restore_model(saved(pretrained.parent, 2))
    trained = {k.removeprefix(f"{weights}."): v for k, v in load_file(saved(adapted)).items()
               if k.startswith(weights)}
    state, before = model.state_dict(), base.state_dict()
    assert state.keys() == before.keys()
    for name in ("blocks.0.attn.qkv", "blocks.3.mlp.fc2"):
        product = trained[f"{name}.lora_B"] @ trained[f"{name}.lora_A"]
        assert product.abs().max() > 0
        expected = before[f"{name}.weight"] + 1.5 * product
        assert torch.allclose(state[f"{name}.weight"], expected, rtol=0, atol=1e-7)
        assert torch.equal(state[f"{name}.bias"], before[f"{name}.bias"])
    assert torch.equal(state["blocks.0.attn.proj.weight"], before["blocks.0.attn.proj.weight"])


def test_a_lora_run_resumes_exactly(adapted, command, tmp_path):
    script("train.py", *command, *LORA, "--max-steps", 3, "--results-dir", tmp_path)
    reordered = [{"qkv": "mlp", "mlp": "qkv"}.get(flag, flag) for flag in LORA]
    done = script("train.py", *command, *reordered, "--max-steps", 4, "--results-dir", tmp_path)
    assert "resumes at step 3" in done.stdout
    for name in ("0000004", "0000004.state"):
        ours, theirs = (load_file(saved(folder).with_name(f"{name}.safetensors"))
                        for folder in (tmp_path, adapted))
        assert same(ours, theirs)
    other = script("train.py", *command, *LORA, "--max-steps", 4, "--results-dir", tmp_path,
                   "--lora-rank", 3)
    assert "differs from" in other.stdout and "--lora-rank (3, there 2)" in other.stdout


def test_two_processes_and_recomputation_train_alike(server, adapted, command, tmp_path):
    together(server, 2, "train", *command, *LORA, "--max-steps", 4, "--accum", 2,
             "--grad-checkpoint", "--results-dir", tmp_path, output=tmp_path)
    ours, theirs = load_file(saved(tmp_path)), load_file(saved(adapted))
    assert ours.keys() == theirs.keys()
    # AdamW divides a tiny gradient by its own size, so rounding may turn a step around
    far = [k for k in ours if (ours[k] - theirs[k]).norm() > 1e-2 * theirs[k].norm() + 1e-3]
    assert far == []


def test_a_lora_checkpoint_is_sampled_and_trained_further(adapted, command, vae_folder, tmp_path):
    sampled = script("sample.py", "--ckpt", adapted, "--num-samples", 1, "--sampler", "dpm++",
                     "--num-sampling-steps", 2, "--precision", "fp32", "--output", tmp_path / "s")
    assert "1 mosaics and NIfTI volumes" in sampled.stdout
    further = [saved(adapted) if isinstance(flag, type(saved(adapted))) and flag.suffix
               else flag for flag in command]
    dry = script("train.py", *further, "--tune", "bitfit", "--dry-run")
    assert "names and shapes fit" in dry.stdout
    script("train.py", *further, "--tune", "bitfit", "--max-steps", 1, "--ckpt-every", 1,
           "--results-dir", tmp_path)
    path = saved(tmp_path, 1)
    names = {key.split(".", 1)[1] for key in load_file(path)}
    assert {finetuning.parameter_kind(name) for name in names} == {"bias"}
    again, _ = pretrained.restore_model(path)
    before, _ = pretrained.restore_model(saved(adapted))
    for name in ("blocks.1.mlp.fc1.weight", "y_embedder.embedding_table.weight"):
        assert torch.equal(again.state_dict()[name], before.state_dict()[name])
    assert not torch.equal(again.blocks[1].mlp.fc1.bias, before.blocks[1].mlp.fc1.bias)


@pytest.mark.parametrize("flags, lines", [
    (("--tune", "bitfit"), {"bias": 25_120}),
    (("--tune", "difffit"), {"bias": 25_120, "class table": 1_152}),
    (("--tune", "difffit", "--gamma-blocks", 4), {"gamma": 3_072}),
    (("--tune", "lora"), {"class table": 1_152, "LoRA": 8 * 4 * (384 * 16)}),
    (("--tune", "lora", "--lora-rank", 16, "--lora-targets", "proj"), {"LoRA": 16 * 4 * 768})])
def test_the_dry_run_counts(command, flags, lines):
    done = script("train.py", *command, "--dry-run", *flags)
    found = {line[:13].strip(): line for line in done.stdout.splitlines() if " tensors " in line}
    for kind, count in lines.items():
        assert f" {count:,} values" in found[kind]


@pytest.mark.parametrize("flags, words", [
    (("--lora-rank", 4), "only for --tune lora; leave them out for --tune difffit"),
    (("--tune", "full", "--lora-targets", "mlp"), "only for --tune lora"),
    (("--tune", "lora", "--lora-rank", 0), "--lora-rank 0: must be 1"),
    (("--tune", "lora", "--lora-targets", "all"), "invalid choice: 'all'"),
    (("--tune", "lora", "--lora-alpha", 0), "must be a finite number above 0"),
    (("--tune", "lora", "--ckpt", "none"), "--tune lora needs pretrained weights"),
    (("--tune", "bitfit", "--gamma-blocks", 2), "--tune bitfit does not train scale vectors"),
    (("--tune", "lora", "--gamma-blocks", 2), "--tune lora does not train scale vectors")])
def test_flags_that_do_not_go_together(command, tmp_path, flags, words):
    done = script("train.py", *command, *flags, "--results-dir", tmp_path / "r", expect=2)
    assert words in error_line(done) and not (tmp_path / "r").exists()


def test_frozen_classes_that_remain_the_same_are_named(command):
    note = "--tune bitfit does not train the class table: the classes remain the same"
    assert note in script("train.py", *command, "--num-classes", 3, "--dry-run", "--tune",
                          "bitfit").stdout
    assert "remain the same" not in script("train.py", *command, "--num-classes", 3, "--dry-run",
                                           "--tune", "lora").stdout
