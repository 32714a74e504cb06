"""The same results on a GPU as on the CPU, and the scripts on it as a user runs them."""
import math

import numpy as np
import pytest
import torch
from helpers import finetune_flags, random_vae, randomize, script, small_dit
from safetensors.torch import load_file

from diffusion import samplers
from diffusion import vae as vae_module
from mri import manifest, mosaic_files
from training import acceleration, finetuning
from training.cuda_graphs import GraphedGradients
from training.loss_scaling import LossScaler
from training.state import TrainingState
from training.step import Batches, compute_gradients
from utils.files import read_json
from utils.precision import autocast
from utils.seeding import seeded_generator

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(),
                                reason="needs a CUDA GPU: make test-gpu")

GPU = "cuda"
CONFIG = dict(input_size=32, hidden_size=144, num_heads=2, depth=4, gamma_blocks=2)
SAMPLING = ("--num-samples", 3, "--batch-size", 2, "--num-sampling-steps", 4)


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32: its products have 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


# ----------------------------------------------------------------------------------------- a step

def build(device, tokens=None):
    """A DiT in which every branch matters, with heads of 72 values and 256 tokens, as XL has."""
    torch.manual_seed(0)
    model = randomize(small_dit(**CONFIG).initialize_weights(), 0.05)
    trained = finetuning.set_trainable(model, "difffit")
    model.keep_tokens(tokens).to(device)
    return model.save_memory(True, 0).train(), trained


def batches(device, **more):
    g = torch.Generator().manual_seed(1)
    moments = torch.randn(6, 8, 32, 32, generator=g)
    return Batches(moments, torch.arange(6) % 3, dict(scaling_factor=0.2), 10, seed=0,
                   global_batch_size=4, label_dropout=0.3, last_step=14, device=device, **more)


def gradient(device, precision="fp32", compiled=False, tokens=None, scaled=False):
    """Losses, and the gradient as one vector, of the first step."""
    model, trained = build(device, tokens)
    acceleration.narrow_matrices(model, precision)
    if compiled:
        acceleration.accelerate_blocks(model, device, True, precision)
    scaler = LossScaler(device) if scaled else None
    losses, is_bad = compute_gradients(
        model, batches(device).take(1), list(trained.values()), global_batch_size=4,
        precision=precision, device=device, loss_scaler=scaler)
    assert is_bad == 0
    return losses.cpu(), torch.cat([p.grad.flatten().cpu() for p in trained.values()])


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("tokens", [None, torch.arange(20, 200)])
def test_loss_and_gradient_are_the_cpus(tokens):
    losses, grad = gradient("cpu", tokens=tokens)
    on_gpu, g = gradient(GPU, tokens=tokens)
    assert grad.norm() > 0.1
    assert torch.allclose(on_gpu, losses, rtol=1e-5)
    assert relative(g, grad) < 1e-4


@pytest.mark.parametrize("precision, scaled", [("bf16", False), ("fp16", True)])
@pytest.mark.parametrize("compiled", [False, True])
def test_narrow_precision_is_close_to_fp32(precision, scaled, compiled):
    losses, grad = gradient("cpu")
    on_gpu, g = gradient(GPU, precision, compiled, scaled=scaled)
    assert torch.allclose(on_gpu, losses, rtol=5e-3)
    assert 0 < relative(g, grad) < (2e-2 if precision == "bf16" else 5e-3)


def test_compiled_blocks_give_the_gradient_of_eager_ones():
    losses, grad = gradient(GPU)
    compiled, g = gradient(GPU, compiled=True)
    assert torch.allclose(compiled, losses, rtol=1e-5)
    assert relative(g, grad) < 1e-4


@pytest.mark.parametrize("precision, compiled, accum", [
    ("fp32", False, 1), ("bf16", True, 2), ("fp16", True, 1)])
def test_a_graph_computes_what_it_was_captured_from(precision, compiled, accum):
    """Fourteen steps of the optimizer: of two batch sizes, and one that is not finite."""
    results = []
    for gradients in (compute_gradients, GraphedGradients()):
        model, trained = build(GPU)
        acceleration.narrow_matrices(model, precision)
        if compiled:
            acceleration.accelerate_blocks(model, GPU, True, precision)
        scaler = LossScaler(GPU) if precision == "fp16" else None
        state = TrainingState(trained, lr=1e-3, device=GPU, loss_scaler=scaler)
        source, logged = batches(GPU), []
        for state.step in range(1, 15):
            batch = source.take(state.step)
            if state.step > 8:
                batch = tuple(values[:2] for values in batch)
            if state.step == 6:
                batch[0].fill_(math.inf)
            losses, is_bad = gradients(
                model, batch, list(trained.values()), global_batch_size=4, accum=accum,
                precision=precision, device=GPU, loss_scaler=scaler)
            state.update(losses, is_bad, 1e-3)
            state.optimizer.zero_grad(set_to_none=True)
            logged.append(losses.tolist())
            if scaler and state.step == 7:      # too large: gradients overflow
                scaler.scale.fill_(2.0 ** 60)
        skipped = [s.step for s in state.settle()]
        assert skipped[0] == 6 and (len(skipped) > 1) == (precision == "fp16")
        results.append((torch.tensor(logged), torch.cat([
            p.detach().flatten() for p in (*trained.values(), *state.ema.values())]).cpu()))
    (expected, eager), (found, graphed) = results
    finite = expected.isfinite().all(1)
    assert finite.sum() == 13 and torch.equal(found.isfinite().all(1), finite)
    # in bf16 another order of sums is another rounding
    tolerance = 1e-4 if precision == "fp32" else 1e-2
    assert torch.allclose(found[finite], expected[finite], rtol=tolerance)
    assert relative(graphed, eager) < tolerance
    assert len({tuple(row) for row in found.tolist()}) == 14


@pytest.mark.parametrize("prefetch", [True, False])
def test_a_step_that_is_not_finite_changes_nothing(prefetch):
    model, trained = build(GPU)
    state = TrainingState(trained, lr=1e-2, device=GPU)
    source = batches(GPU, prefetch=prefetch)
    parameters = list(trained.values())
    before = {name: p.detach().clone() for name, p in trained.items()}
    for step in (1, 2):
        state.step = step
        losses, is_bad = compute_gradients(model, source.take(step), parameters,
                                           global_batch_size=4, precision="fp32", device=GPU)
        if step == 1:
            parameters[3].grad.fill_(math.nan)
            is_bad = torch.ones_like(is_bad)
        state.update(losses, is_bad, 1e-2)
        state.optimizer.zero_grad(set_to_none=True)
        same = all(torch.equal(before[name], p) for name, p in trained.items())
        assert same == (step == 1)
        averaged = all(torch.equal(before[name], p) for name, p in state.ema.items())
        assert averaged == (step == 1)
    assert [(s.step, s.in_a_row) for s in state.settle()] == [(1, 1)]


# ----------------------------------------------------------------------------------------- samples

@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("scale", [1, 3])
def test_samples_are_the_cpus(name, scale):
    """Noise is drawn on the host: (seed, i) is one sample on every device."""
    drawn = []
    for device in ("cpu", GPU):
        model, _ = build(device)
        generators = [seeded_generator(0, i) for i in range(3)]
        with autocast(device, "fp32"):
            drawn.append(samplers.sample(
                model.requires_grad_(False), (4, 32, 32), torch.tensor([0, 1, 2]), 10, generators,
                name, 5, scale, device=device).cpu())
    assert drawn[0].std() > 0.1
    assert relative(drawn[1], drawn[0]) < 1e-3


def test_the_vae_is_the_cpus(tmp_path):
    folder = random_vae(tmp_path / "vae", blocks=(32, 32, 32))
    mosaics = np.random.default_rng(0).integers(0, 256, (2, 48, 48, 3), np.uint8)
    moments, decoded = zip(*(
        (vae_module.encode_moments(vae, mosaics), vae_module.reconstruct(vae, mosaics))
        for vae in (vae_module.load_vae(folder, device) for device in ("cpu", GPU))))
    assert relative(moments[1], moments[0]) < 1e-4
    assert np.abs(decoded[1].astype(int) - decoded[0]).max() <= 1


# ----------------------------------------------------------------------------------------- scripts

def train(data, vae, results, base, *more):
    """The run folder of a training on the GPU."""
    flags = [GPU if flag == "cpu" else flag for flag in finetune_flags(base)]
    script("train.py", "--data-path", data, "--vae", vae, "--results-dir", results, *flags, *more,
           fresh=True)
    return results / "000-DiT-T-4"


@pytest.fixture(scope="module")
def run(data, vae_folder, pretrained, tmp_path_factory):
    return train(data, vae_folder, tmp_path_factory.mktemp("gpu"), pretrained,
                 "--gamma-blocks", 2, "--max-steps", 4)


def weights(run, step=4, kind=""):
    return load_file(run / "checkpoints" / f"{step:07d}{kind}.safetensors")


def distance(found, expected, start):
    """How far two runs ended from each other, relative to how far they came.

    In the first steps AdamW moves every value by about the learning rate, in a direction that is
    a matter of rounding where the gradient is nearly zero: single values may differ.
    """
    assert found.keys() == expected.keys()
    names = [name for name in expected if name in start]
    assert names
    apart, moved = (math.hypot(*(float((a[name] - b[name]).norm()) for name in names))
                    for a, b in ((found, expected), (expected, start)))
    return apart / moved


def test_training_gives_the_cpus_weights(run, finetuned, pretrained):
    start = weights(pretrained, 2)
    assert distance(weights(run), weights(finetuned), start) < 0.05


def test_a_resumed_run_is_close_to_an_uninterrupted_one(run, data, vae_folder, pretrained,
                                                        tmp_path):
    """Equal but for the order of sums on the GPU."""
    for steps in (2, 4):
        resumed = train(data, vae_folder, tmp_path / "r", pretrained, "--gamma-blocks", 2,
                        "--max-steps", steps)
    assert distance(weights(resumed), weights(run), weights(pretrained, 2)) < 0.02


@pytest.mark.parametrize("more", [
    ("--precision", "fp16"),
    ("--precision", "bf16", "--tokens", "foreground", "--token-drop", 0.5, "--full-steps", 1),
    ("--precision", "bf16", "--token-route", 0.5),
    ("--precision", "bf16", "--grad-checkpoint", 2, "--accum", 2, "--no-compile"),
    ("--precision", "bf16", "--tune", "lora", "--val-every", 2, "--sample-every", 4),
    ("--precision", "fp16", "--tune", "full"),
    ("--precision", "bf16", "--cuda-graphs", "--tokens", "foreground", "--token-drop", 0.5,
     "--full-steps", 4, "--val-every", 4, "--max-steps", 12),
], ids=lambda more: "-".join(map(str, more)).replace("--", ""))
def test_every_way_of_training_runs(more, data, vae_folder, pretrained, tmp_path):
    """And a model of each can be sampled there."""
    folder = train(data, vae_folder, tmp_path / "r", pretrained, "--max-steps", 4, *more)
    log = (folder / "log.txt").read_text()
    assert "skipped" not in log or "fp16 gradients overflowed" in log
    script("sample.py", "--ckpt", folder, "--output", tmp_path / "s", *SAMPLING, "--sampler",
           "dpm++", "--cfg-scale", 2, "--device", GPU, fresh=True)
    assert len(list((tmp_path / "s" / "nifti").iterdir())) == 3


def test_sampled_volumes_are_the_cpus(run, data, tmp_path):
    header, _ = manifest.read_manifest(data)
    mosaics = {}
    for device in ("cpu", GPU):
        out = tmp_path / device
        script("sample.py", "--ckpt", run, "--output", out, *SAMPLING, "--sampler", "ddpm",
               "--precision", "fp32", "--device", device, fresh=True,
               env={"NVIDIA_TF32_OVERRIDE": "0"})
        paths = [mosaic_files.mosaic_path(out, f"{i:06d}") for i in range(3)]
        mosaics[device] = np.stack([mosaic_files.read_mosaic(path, header) for path in paths])
    mosaics = {device: stack.astype(int) for device, stack in mosaics.items()}
    difference = np.abs(mosaics[GPU] - mosaics["cpu"])
    assert mosaics["cpu"].std() > 1
    assert difference.max() <= 2 and difference.mean() < 0.1


def test_the_other_scripts_compute_there(run, data, tmp_path):
    script("train_vae.py", "--data-path", data, "--init", "tiny", "--tune", "all", "--max-steps", 3,
           "--batch-size", 2, "--crop", 48, "--output", tmp_path / "v", "--device", GPU, fresh=True)
    script("train_refiner.py", "--data-path", data, "--ckpt", run, "--max-steps", 3,
           "--batch-size", 2, "--crop", 12, "--pairs", 4, "--output", tmp_path / "r",
           "--device", GPU, fresh=True)
    script("sample.py", "--ckpt", run, "--refiner", tmp_path / "r", "--output", tmp_path / "s",
           *SAMPLING, "--device", GPU, fresh=True)
    reports = []
    for device in ("cpu", GPU):
        script("evaluate.py", "--real", data, "--real-split", "all", "--synthetic", tmp_path / "s",
               "--metrics", "mmd", "smoothness", "histogram", "--output", tmp_path / device,
               "--device", device, fresh=True)
        report = read_json(tmp_path / device / "metrics.json")["metrics"]
        reports.append(report["mmd_linear"]["value"])
    assert math.isclose(*reports, rel_tol=1e-4)


def test_bench_measures_there():
    done = script("bench.py", "train", "--model", "DiT-T/4", "--vae", "tiny", "--image-size", 512,
                  "--steps", 2, "--turns", 1, "--device", GPU, fresh=True)
    assert "baseline / optimized" in done.stdout
