"""Cost of a training step: the published training loop against train.py's."""
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import baseline, measure, networks
from diffusion import vae
from training import acceleration
from training.cuda_graphs import WARM_UP, GraphedGradients
from training.loss_scaling import LossScaler
from training.state import TrainingState
from training.step import Batches, compute_gradients
from utils.precision import NARROW_DTYPES

LEARNING_RATE = 5e-4
LABEL_DROPOUT = 0.1
SCALING_FACTOR = 0.18215    # of Stable Diffusion's latents


@dataclass(frozen=True, kw_only=True)
class TrainingSetup(networks.NetworkSetup):
    """A training step to measure; train.py documents its flags of these names."""
    accum: int = 1
    grad_checkpoint: int = 0
    keep_activations: bool = False
    cuda_graphs: bool = False
    profile: bool = False           # also find the operations that take most of the time


@dataclass(frozen=True, kw_only=True)
class TrainingCost(measure.StepCost):
    """Cost of a training step."""
    operations: float                   # floating-point operations of the matrix products, an image
    matmul_rate: float                  # operations per second of a large matrix product
    vae_seconds: float | None = None    # the VAE's encoding of the batch, in the baseline's step
    first_seconds: float | None = None  # the optimized first step, with what is compiled in it
    profile: tuple = ()                 # lines of measure.slowest_operations


# -------------------------------------------------------------------------------------- measuring

def baseline_step(setup):
    """Cost of a step of the published training loop. To be called in a process of its own.

    :param setup: TrainingSetup
    :return: TrainingCost
    """
    device = setup.device
    measure.limit_memory(device, setup.memory_limit)
    model, trained = networks.random_dit(setup, "fp32")
    autoencoder = networks.random_vae(setup, torch.contiguous_format)
    trainer = baseline.Trainer(model, autoencoder, trained, LEARNING_RATE)
    shape = (setup.batch_size, setup.image_size, setup.image_size, 3)
    mosaics = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels = torch.zeros(setup.batch_size, dtype=torch.long, device=device)

    def step():
        trainer.step(mosaics, labels)

    seconds = measure.time_steps(step, device, setup.steps, measure.warm_up_steps(device))
    peak = measure.peak_gb(device)
    return TrainingCost(
        step_seconds=seconds, peak_gb=peak,
        operations=count_operations(model, setup.tokens, backward=True),
        matmul_rate=measure.matmul_rate(device),
        vae_seconds=_encoding_seconds(autoencoder, mosaics, setup),
        profile=tuple(measure.slowest_operations(step, device)) if setup.profile else ())


@torch.no_grad()
def _encoding_seconds(autoencoder, mosaics, setup):
    pixels = vae.to_pixels(mosaics, setup.device).contiguous()  # laid out as in the step

    def encode():
        autoencoder.encode(pixels)

    return float(np.median(measure.time_steps(encode, setup.device, setup.steps, warm_up=0)))


def foreground_step(setup):
    """Cost of a step of train.py --tokens foreground. To be called in a process of its own.

    :param setup: TrainingSetup
    :return: TrainingCost
    """
    return optimized_step(setup, networks.foreground_tokens(setup))


def optimized_step(setup, kept=None):
    """Cost of a step of train.py with DiffFit. To be called in a process of its own.

    :param setup: TrainingSetup
    :param kept: (K,) int64, the tokens that are computed; None: all
    :return: TrainingCost
    """
    device = setup.device
    measure.limit_memory(device, setup.memory_limit)
    model, trained = networks.random_dit(setup, setup.precision)
    model.keep_tokens(kept)
    model.save_memory(not setup.keep_activations, setup.grad_checkpoint).train()
    start = time.perf_counter()
    message = acceleration.accelerate_blocks(model, device, setup.compile, setup.precision)
    step = _optimized_step(setup, model, trained)
    step()
    measure.wait(device)
    first = time.perf_counter() - start
    warm_up = measure.warm_up_steps(device) - 1  # the first step is one of them
    if setup.cuda_graphs:
        warm_up = max(warm_up, WARM_UP)     # a graph is captured in the step after them
    seconds = measure.time_steps(step, device, setup.steps, warm_up)
    peak = measure.peak_gb(device)
    return TrainingCost(
        step_seconds=seconds, peak_gb=peak, message=message, first_seconds=first,
        operations=count_operations(model, setup.tokens if kept is None else len(kept),
                                    backward=True),
        matmul_rate=measure.matmul_rate(device, NARROW_DTYPES.get(setup.precision, torch.float32)),
        profile=tuple(measure.slowest_operations(step, device)) if setup.profile else ())


def _optimized_step(setup, model, trained):
    """A function that does the next training step, as train.py's loop does it."""
    volumes = 2 * setup.batch_size
    generator = torch.Generator().manual_seed(0)
    moments = torch.randn(volumes, 8, setup.latent_side, setup.latent_side, generator=generator)
    labels = torch.zeros(volumes, dtype=torch.long)
    batches = Batches(
        moments, labels, dict(scaling_factor=SCALING_FACTOR), model.num_classes, seed=0,
        global_batch_size=setup.batch_size, label_dropout=LABEL_DROPOUT, last_step=10 ** 6,
        device=setup.device, prefetch=True)
    scaler = LossScaler(setup.device) if setup.precision == "fp16" else None
    gradients = GraphedGradients() if setup.cuda_graphs else compute_gradients
    state = TrainingState(trained, lr=LEARNING_RATE, device=setup.device, loss_scaler=scaler)
    parameters = list(trained.values())

    def step():
        state.step += 1
        losses, bad = gradients(
            model, batches.take(state.step), parameters, global_batch_size=setup.batch_size,
            accum=setup.accum, precision=setup.precision, device=setup.device, loss_scaler=scaler)
        state.update(losses, bad, LEARNING_RATE)
        state.optimizer.zero_grad(set_to_none=True)

    return step


def count_operations(model, tokens, backward):
    """Floating-point operations of the matrix products that an image needs, with frozen matrices.

    In each block the linear layers take 24 T w^2 and the attention 4 T^2 w. The backward pass
    takes as much again for the linear layers, as frozen matrices need no gradient, and 2.5 times
    as much for the attention, which it computes again.

    :param model: models.DiT of width w
    :param tokens: T, tokens of an image
    :param backward: count the backward pass too
    """
    width = model.pos_embed.shape[2]
    depth = len(model.blocks)
    linear = 24 * tokens * width ** 2 * depth
    attention = 4 * tokens ** 2 * width * depth
    return linear * (1 + backward) + attention * (1 + 2.5 * backward)


WAYS = {"baseline": baseline_step, "optimized": optimized_step, "foreground": foreground_step}
FORMER_NAMES = {"plain": "baseline", "ours": "optimized"}  # --only accepts them, too


def way_named(text):
    """A flag's type: the name of a way, or its former name."""
    return FORMER_NAMES.get(text, text)


# -------------------------------------------------------------------------------------- reporting

COMPARED = [("baseline", "optimized"), ("optimized", "foreground"), ("baseline", "foreground")]
HEADING = (f"{'':10} {'s/step':>9} {'images/s':>10} {'TFLOP/s':>9} {'matmul':>9} {'share':>9} "
           f"{'peak GB':>8}")


def report(setup, turns, costs):
    """Lines that tell the user what was measured.

    :param turns: turns of each way
    :param costs: {name: TrainingCost of all turns, or None if out of memory}
    """
    lines = [f"{networks.describe(setup)}; {turns} turns of {setup.steps} steps, medians", HEADING]
    lines += [row(name, cost, setup.batch_size) for name, cost in costs.items()]
    old = costs.get("baseline")
    new = costs.get("optimized")
    part = costs.get("foreground")
    lines += [ratio(f"{slow} / {fast}", costs[slow], costs[fast]) for slow, fast in COMPARED
              if costs.get(slow) and costs.get(fast)]
    if part:
        kept = len(networks.foreground_tokens(setup))
        lines.append(f"foreground: {kept} of the {setup.tokens} tokens")
    if old:
        lines.append(f"baseline: the VAE's encoder takes {old.vae_seconds:.3f} s of each step")
    if new:
        first = f"optimized: the first step took {new.first_seconds:.1f} s, with any compilation"
        lines.append(first + (f"; {new.message}" if new.message else ""))
    for name, cost in costs.items():
        if cost and cost.profile:
            lines += [f"{name}: operations that take most of the time of a step", *cost.profile]
    return lines


def ratio(name, slow, fast):
    """How many times faster one way is than another, and its share of the memory."""
    speedup = np.median(slow.step_seconds) / np.median(fast.step_seconds)
    return f"{name}: {speedup:.2f} times faster, {fast.peak_gb / slow.peak_gb:.2f} of the memory"


def row(name, cost, batch_size):
    """One way's line of the table under HEADING."""
    if cost is None:
        return f"{name:10} out of memory"
    seconds = float(np.median(cost.step_seconds))
    rate = cost.operations * batch_size / seconds
    return (f"{name:10} {seconds:9.3f} {batch_size / seconds:10.4f} {rate / 1e12:9.3f} "
            f"{cost.matmul_rate / 1e12:9.3f} {100 * rate / cost.matmul_rate:7.0f} % "
            f"{cost.peak_gb:8.2f}")
