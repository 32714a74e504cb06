"""train.py as a user runs it."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from helpers import AFFINE, TRAIN, brain, error_line, finetune_flags, random_vae, save_nifti, script
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import models
from diffusion import gaussian_diffusion
from diffusion import vae as vae_module
from mri import manifest, mosaic_files
from training import bookkeeping, checkpoint, dry_run, finetuning
from training.pretrained import restore_model, sha256_of_weights
from training.run_folder import Run
from training.state import TrainingState


def train(data, vae, results, *args, **kwargs):
    return script(
        "train.py", "--data-path", data, "--vae", vae, "--results-dir", results, *args, **kwargs
    )


def tensors(run, name):
    return load_file(run / "checkpoints" / f"{name}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_run_folder(finetuned, pretrained, data, vae_folder):
    names = sorted(p.stem for p in (finetuned / "checkpoints").iterdir())
    assert names == ["0000002", "0000002.state", "0000004", "0000004.state"]
    args = json.loads((finetuned / "args.json").read_text())
    assert args["tune"] == "difffit" and args["lr"] == 1e-3 and args["max_steps"] == 4
    meta = checkpoint.read_metadata(finetuned / "checkpoints" / "0000004.safetensors")
    base = pretrained / "checkpoints" / "0000002.safetensors"
    assert meta["base"] == dict(
        path=str(base), name=base.name, sha256=sha256_of_weights(base)
    )
    assert (meta["step"], meta["model"], meta["tune"], meta["image_size"]) == (
        4,
        "DiT-T/4",
        "difffit",
        48,
    )
    assert meta["header"] == manifest.read_manifest(data)[0] and meta["vae"][
        "sha256"
    ] == vae_module.fingerprint(vae_module.load_vae(vae_folder))
    log = [json.loads(line) for line in (finetuned / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log] == [2, 4] and all(
        np.isclose(e["loss"], e["mse"] + e["vb"]) for e in log
    )
    board = EventAccumulator(str(finetuned)).Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [
        (e["step"], np.float32(e["loss"])) for e in log
    ]
    assert "step 4/4: loss" in (finetuned / "log.txt").read_text()


def test_only_what_should_trains(finetuned, pretrained):
    raw = {
        k.removeprefix("raw."): v
        for k, v in tensors(finetuned, "0000004").items()
        if k.startswith("raw.")
    }
    with torch.device("meta"):
        model = models.DiT_models["DiT-T/4"](
            input_size=12, in_channels=5, num_classes=2, gamma_blocks=2
        )
    assert raw.keys() == finetuning.set_trainable(model, "difffit").keys()
    before = restore_model(pretrained / "checkpoints" / "0000002.safetensors")[
        0
    ].state_dict()
    moved = [k for k in raw if not torch.equal(raw[k], before.get(k, torch.ones_like(raw[k])))]
    assert {finetuning.parameter_kind(k) for k in moved} == {"bias", "class table", "gamma"}
    full = {k.removeprefix("raw.") for k in tensors(pretrained, "0000002") if k.startswith("raw.")}
    assert full == before.keys() - {"pos_embed"}


def test_one_step_is_adamw_on_the_papers_loss(data, vae_folder, tmp_path):
    """Two steps of full tuning, repeated without the script: the same draws, losses and updates."""
    train(
        data,
        vae_folder,
        tmp_path,
        "--tune",
        "full",
        "--max-steps",
        2,
        *TRAIN,
        "--label-dropout",
        0.5,
        "--weight-decay",
        0.01,
    )
    torch.set_num_threads(1)  # as the script: Adam divides tiny gradients by their own size
    header, entries = manifest.read_manifest(data)
    entries = [v for v in entries if v["split"] == "train"]
    vae = vae_module.load_vae(vae_folder)
    moments = vae_module.encode_moments(vae, mosaic_files.read_mosaics(data, header, entries))
    torch.manual_seed(0)
    model = models.DiT_models["DiT-T/4"](
        input_size=12, in_channels=5, num_classes=2
    ).initialize_weights()
    trained = {k: p for k, p in model.named_parameters() if k != "pos_embed"}
    optimizer = torch.optim.AdamW(trained.values(), 1e-3, weight_decay=0.01)
    ema = {k: p.detach().clone() for k, p in trained.items()}
    for step in (1, 2):
        seed = int(
            np.random.SeedSequence([0, step]).generate_state(1, np.uint64)[0] >> np.uint64(1)
        )
        g = torch.Generator().manual_seed(seed)
        index, t = (
            torch.randint(len(entries), (4,), generator=g),
            torch.randint(1000, (4,), generator=g),
        )
        noise, vae_noise = (
            torch.randn(4, 5, 12, 12, generator=g),
            torch.randn(4, 5, 12, 12, generator=g),
        )
        y = torch.where(
            torch.rand(4, generator=g) < 0.5, 2, torch.tensor([v["class"] for v in entries])[index]
        )
        mean, std = moments[index].chunk(2, 1)
        losses = gaussian_diffusion.training_losses(
            model, (mean + std * vae_noise) * 0.7, t, y, noise
        )
        optimizer.zero_grad()
        losses["loss"].mean().backward()
        optimizer.step()
        for k, p in trained.items():
            decay = (1 + step) / (10 + step)  # the warm-up: below --ema-decay 0.9
            ema[k] = decay * ema[k] + (1 - decay) * p.detach()
    saved = tensors(tmp_path / "000-DiT-T-4", "0000002")
    for k, p in trained.items():
        assert torch.allclose(saved[f"raw.{k}"], p, atol=2e-6), k
        assert torch.allclose(saved[f"ema.{k}"], ema[k], atol=2e-6), k
    torch.set_num_threads(2)


def test_a_resumed_run_equals_an_uninterrupted_one(
    finetuned, pretrained, data, vae_folder, tmp_path
):
    args = finetune_flags(pretrained) + ["--gamma-blocks", 2]
    train(data, vae_folder, tmp_path, "--max-steps", 3, *args)  # stops between two log lines
    done = train(data, vae_folder, tmp_path, "--max-steps", 4, *args)
    assert "resumes at step 3" in done.stdout
    run = tmp_path / "000-DiT-T-4"
    assert [p.name for p in tmp_path.iterdir()] == [run.name]
    assert same(tensors(run, "0000004.state"), tensors(finetuned, "0000004.state"))
    assert same(tensors(run, "0000004"), tensors(finetuned, "0000004"))
    assert (
        "has its 4 steps already"
        in train(data, vae_folder, tmp_path, "--max-steps", 4, *args).stdout
    )
    train(data, vae_folder, tmp_path, "--max-steps", 1, *args, "--resume", "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["000-DiT-T-4", "001-DiT-T-4"]
    contradiction = train(
        data, vae_folder, tmp_path, "--max-steps", 9, *args, "--lr", 2e-3, "--resume", run, expect=2
    )
    assert "--lr 0.002" in error_line(contradiction) and "started with 0.001" in error_line(
        contradiction
    )


def test_parts_and_recomputation_give_the_whole_batchs_step(data, vae_folder, pretrained, tmp_path):
    args = finetune_flags(pretrained)
    for results, extra in (
        ("a", ()),
        ("b", ("--accum", 4, "--grad-checkpoint")),
        ("c", ("--grad-checkpoint", 2, "--no-prefetch", "--keep-activations")),
    ):
        train(data, vae_folder, tmp_path / results, "--max-steps", 2, *args, *extra)
    a, *others = (tensors(tmp_path / r / "000-DiT-T-4", "0000002") for r in "abc")
    assert all(torch.allclose(a[k], other[k], atol=1e-5) for k in a for other in others)


def test_compile_where_there_is_no_compiler(data, vae_folder, pretrained, tmp_path):
    args = (*finetune_flags(pretrained), "--max-steps", 1, "--compile")
    nothing = {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = train(data, vae_folder, tmp_path / "r", *args, env=nothing, fresh=True, expect=2)
    assert "--compile: torch.compile does not work here" in error_line(
        done
    ) and "leave it out" in error_line(done)
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile needs a C++ compiler on a CPU",
)
def test_compiled_blocks_train_alike(data, vae_folder, pretrained, tmp_path):
    args = finetune_flags(pretrained)
    for results, extra in (
        ("a", ()),
        ("b", ("--compile", "--grad-checkpoint", 2, "--sample-every", 2)),
    ):
        done = train(data, vae_folder, tmp_path / results, "--max-steps", 2, *args, *extra)
    assert (
        "blocks are compiled" in done.stdout
        and (tmp_path / "b" / "000-DiT-T-4" / "samples" / "0000002.png").exists()
    )
    assert "recompile_limit" not in done.stderr
    a, b = (tensors(tmp_path / r / "000-DiT-T-4", "0000002") for r in "ab")
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)


def test_bf16_is_near_fp32(finetuned, data, vae_folder, pretrained, tmp_path):
    args = [
        {"none": pretrained / "checkpoints" / "0000002.safetensors", "fp32": "bf16"}.get(a, a)
        for a in TRAIN
    ] + ["--gamma-blocks", 2]
    train(data, vae_folder, tmp_path, "--max-steps", 4, *args, "--sample-every", 4)
    ours, theirs = (
        json.loads((r / "log.jsonl").read_text().splitlines()[-1])
        for r in (tmp_path / "000-DiT-T-4", finetuned)
    )
    assert ours["loss"] != theirs["loss"] and abs(ours["loss"] / theirs["loss"] - 1) < 1e-3
    assert all(
        v.dtype == torch.float32
        for v in tensors(tmp_path / "000-DiT-T-4", "0000004.state").values()
    )
    header, _ = manifest.read_manifest(data)
    assert (
        mosaic_files.read_mosaic(tmp_path / "000-DiT-T-4" / "samples" / "0000004.png", header).std()
        > 1
    )


def test_dry_run_of_the_papers_model(tmp_path):
    """At full size: a 128-cube, a VAE of factor 8, DiT-XL/2. Nothing is written.

    What trains is printed even if the weights are not there; that they are not is an error.
    """
    save_nifti(tmp_path / "in" / "a.nii.gz", brain((30, 34, 30)), AFFINE)
    script(
        "preprocess.py",
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "d",
        "--split",
        "1:0",
        "--workers",
        1,
    )
    vae = random_vae(tmp_path / "v", blocks=(8, 8, 8, 8), channels=4)
    args = (
        "--data-path",
        tmp_path / "d",
        "--vae",
        vae,
        "--results-dir",
        tmp_path / "r",
        "--image-size",
        896,
        "--dry-run",
    )
    missing = script("train.py", *args, "--gamma-blocks", 14, cwd=tmp_path, expect=2)
    assert "--ckpt DiT-XL-2-512x512.pt: no such file" in error_line(missing)
    out = missing.stdout
    assert (
        "latents 4 x 112 x 112, 3,136 tokens; 1 volumes" in out
        and "28 blocks, width 1152, 16 heads" in out
    )
    rows = {line.split("  ")[1]: line.split() for line in out.splitlines() if " tensors " in line}
    assert rows["class table"][2:5:2] == ["1", "1,153,152"] and rows["bias"][3] == "489,632"
    assert rows["gamma"][1:4:2] == ["28", f"{28 * 1152:,}"]
    assert "a checkpoint: 13.4 MB" in out and not (tmp_path / "r").exists()
    random = (*args, "--ckpt", "none", "--tune", "full")
    full = script("train.py", *random, "--precision", "fp32").stdout
    assert "100.000% of the model" in full
    half = script("train.py", *args, "--grad-checkpoint", 2, cwd=tmp_path, expect=2).stdout

    def activations(text):
        return float(
            next(
                line.split()[-1]
                for line in text.splitlines()
                if "activations" in line and "images" in line
            )
        )

    # 4 images: above the residual stream and qkv in bf16 alone, and full tuning in fp32 keeps more
    assert 4 * 28 * 3136 * 1152 * (4 + 3 * 2) / 1e9 < activations(out) < activations(full)
    # 11 bf16 activations of the residual stream's size per block, or of every other block only its
    # fp32 input
    assert [round(activations(o) / (4 * 28 * 3136 * 1152 * 2 / 1e9), 1) for o in (out, half)] == [
        11.0,
        6.5,
    ]
    assert "not a multiple" not in out
    wrong = script("train.py", *args[:-3], "--image-size", 512, expect=2)
    assert "--image-size 512" in error_line(wrong) and "896" in error_line(wrong)


def test_refusals(data, vae_folder, tmp_path):
    def refused(*args, vae=vae_folder, folder=data):
        return error_line(train(folder, vae, tmp_path / "r", *args, expect=2))

    base = ("--ckpt", "none", "--tune", "full", "--model", "DiT-T/4", "--device", "cpu")
    assert "add --tune full" in refused("--ckpt", "none", "--model", "DiT-T/4")
    assert "only for --ckpt none" in refused("--model", "DiT-T/4", "--base-grid", 8)
    assert "no such file" in refused("--model", "DiT-T/4", "--ckpt", tmp_path / "no.pt")
    assert "DiT-T/8: mosaics of 48 pixels" in refused(
        "--ckpt", "none", "--tune", "full", "--model", "DiT-T/8"
    )
    assert "must divide --global-batch-size 4" in refused(*base, "--accum", 3)
    assert "--token-margin 1: needs --tokens foreground" in refused(*base, "--token-margin", 1)
    assert "--val-split val: needs --val-every" in refused(*base, "--val-split", "val")
    assert "--ckpt none has no base weights" in refused(*base, "--base", tmp_path / "base.pt")
    assert "--grad-checkpoint -1: must be K, at least 1" in refused(*base, "--grad-checkpoint", -1)
    assert "--gamma-blocks 9: DiT-T/4 has 4 blocks" in refused(*base, "--gamma-blocks", 9)
    assert "no such folder" in refused(*base, vae=tmp_path / "none")
    assert "manifest.json" in refused(*base, folder=tmp_path)
    shutil.copytree(data, tmp_path / "d", ignore=shutil.ignore_patterns("latents-*"))
    next(p for p in (tmp_path / "d" / "mosaics").iterdir() if "sub-0" in p.name).write_bytes(b"")
    manifest_ = json.loads((tmp_path / "d" / "manifest.json").read_text())
    for v in manifest_["volumes"]:
        v["split"] = "train"
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest_))
    assert "cannot be read as PNG" in refused(*base, folder=tmp_path / "d")
    assert "--num-classes 1: the data has 2 classes" in refused(*base, "--num-classes", 1)
    manifest_["volumes"][0]["class"] = -1
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest_))
    assert "volume 1 is damaged" in refused(*base, folder=tmp_path / "d")
    manifest_["grid"] = 4
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest_))
    assert "contradict each other" in refused(*base, folder=tmp_path / "d")
    assert not (tmp_path / "r").exists()
    assert (
        "unrecognized arguments"
        in script("train.py", "--data-path", data, "--max-step", 3, expect=2).stderr
    )


def test_two_jobs_get_two_folders(data, vae_folder, tmp_path):
    runs = [Run.create(tmp_path, "DiT-T/4", {"model": "DiT-T/4"}) for _ in range(3)]
    assert [r.folder.name for r in runs] == ["000-DiT-T-4", "001-DiT-T-4", "002-DiT-T-4"]
    with pytest.raises(BlockingIOError):  # held while its process lives
        Run(runs[0].folder)


# --------------------------------------------------------------------- what the dry run finds out

def dry_run_of(data, vae, *args, expect=0):
    done = script("train.py", "--data-path", data, "--vae", vae, "--model", "DiT-T/4", "--device",
                  "cpu", "--num-classes", 2, "--dry-run", *args, expect=expect)
    return done.stdout if expect == 0 else error_line(done)


def test_the_dry_run_checks_the_weights_by_their_headers(data, vae_folder, pretrained, finetuned,
                                                         tmp_path):
    base = pretrained / "checkpoints" / "0000002.safetensors"
    assert f"--ckpt {base}: names and shapes fit" in dry_run_of(data, vae_folder, "--ckpt", base)
    chained = finetuned / "checkpoints" / "0000004.safetensors"
    args = ("--gamma-blocks", 2, "--ckpt", chained)
    assert "names and shapes fit" in dry_run_of(data, vae_folder, *args)
    missing = dry_run_of(data, vae_folder, "--ckpt", tmp_path / "no.pt", expect=2)
    assert f"--ckpt {tmp_path / 'no.pt'}: no such file" in missing
    other = dry_run_of(data, vae_folder, "--ckpt", base, "--model", "DiT-S/4", expect=2)
    assert "weights of another model: it lacks blocks." in other
    scaled = dry_run_of(data, vae_folder, "--ckpt", chained, expect=2)
    assert "it also has blocks.0.gamma1" in scaled
    damaged = bytearray(base.read_bytes())
    damaged[-1000] ^= 4  # values are not read: this is found when the run begins
    (tmp_path / "b.safetensors").write_bytes(damaged)
    assert "fit" in dry_run_of(data, vae_folder, "--ckpt", tmp_path / "b.safetensors")


def test_the_dry_run_counts_the_vae_of_previews(data, vae_folder):
    random = ("--ckpt", "none", "--tune", "full")
    without = dry_run_of(data, vae_folder, *random)
    counted = dry_run_of(data, vae_folder, *random, "--sample-every", 5)
    assert "VAE of --sample-every" in counted and "VAE of" not in without
    assert "the VAE is estimated" in counted and "estimated" not in without
    vae = vae_module.load_vae(vae_folder)
    weights = 4 * sum(p.numel() for p in vae.parameters())
    found = dry_run.decoder_bytes(vae, 12)
    largest_tensor = 4 * 16 * 48 * 48  # 16 channels of the mosaic's 48 x 48 pixels, in fp32
    assert weights + 2 * largest_tensor <= found < weights + 5 * largest_tensor


def test_the_dry_run_knows_gpus_before_ampere(capsys):
    """bf16 keeps attention matrices there: 18 GB for an image of DiT-XL/2; fp16 keeps none."""
    config = dict(models.config_of("DiT-XL/2"), input_size=112, in_channels=4, num_classes=1,
                  gamma_blocks=0)
    old = dry_run.MemoryOptions(1, "bf16", fast_bf16=False)
    assert dry_run.attention_bytes(config, [3136] * 28, old) == 28 * 16 * 3136 ** 2 * 4
    every = dry_run.MemoryOptions(1, "bf16", grad_checkpoint=1, fast_bf16=False)
    assert dry_run.attention_bytes(config, [3136] * 28, every) == 16 * 3136 ** 2 * 4
    small = dict(models.config_of("DiT-T/4"), input_size=12, in_channels=5, num_classes=2,
                 gamma_blocks=0)
    outputs = {}
    for precision in ("bf16", "fp16", "fp32"):
        options = dry_run.MemoryOptions(1, precision, fast_bf16=False)
        dry_run.print_dry_run("DiT-T/4", small, "difffit", 3, options)
        outputs[precision] = capsys.readouterr().out
    assert "attention weights" in outputs["bf16"] and "--precision fp16 does not" in outputs["bf16"]
    assert "attention weights" not in outputs["fp16"] + outputs["fp32"]
    options = dry_run.MemoryOptions(1, "bf16")
    dry_run.print_dry_run("DiT-T/4", small, "difffit", 3, options)
    assert capsys.readouterr().out == outputs["fp16"]  # fp16 takes what bf16 takes


def test_fp16_needs_a_gpu(data, vae_folder):
    line = dry_run_of(data, vae_folder, "--ckpt", "none", "--tune", "full", "--precision", "fp16",
                      expect=2)
    assert "--precision fp16: needs a CUDA GPU, this runs on cpu" in line


def test_a_preview_frees_its_vae(vae_folder, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = dict(models.config_of("DiT-T/4"), input_size=12, in_channels=5, num_classes=2)
    model = models.DiT(**config)
    trained = {k: p for k, p in model.named_parameters() if k != "pos_embed"}
    state = TrainingState(trained, lr=0.1)
    raw = {k: p.detach().clone() for k, p in trained.items()}
    alive = []
    load = vae_module.load_vae

    def watched(*args):
        vae = load(*args)
        alive.append(weakref.ref(vae))
        return vae

    monkeypatch.setattr(vae_module, "load_vae", watched)
    path = tmp_path / "samples" / "0000001.png"
    bookkeeping.sample_preview(path, model, state, config, vae=vae_folder, seed=0,
                               precision="fp32", device="cpu")
    gc.collect()
    assert path.is_file() and [ref() for ref in alive] == [None]
    assert all(torch.equal(raw[k], p) for k, p in trained.items())


def test_a_checkpoint_knows_its_classes_and_its_average(finetuned, data):
    meta = checkpoint.read_metadata(finetuned / "checkpoints" / "0000004.safetensors")
    entries = [v for v in manifest.read_manifest(data)[1] if v["split"] == "train"]
    assert meta["class_counts"] == [sum(v["class"] == c for v in entries) for c in (0, 1)]
    share = 2 / 11 * 3 / 12 * 4 / 13 * 5 / 14  # the warm-up, below the decay 0.9
    assert np.isclose(meta["average"]["initial_share"], share) and meta["average"]["warm_up"]
    assert "steps behind" in (finetuned / "log.txt").read_text()
