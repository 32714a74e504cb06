"""What a step of training and of sampling costs on a device, the plain way and ours: each measured in a process of its own.

Used by bench.py. Weights are random: they cost what trained ones cost.
"""
import argparse
import functools
import multiprocessing
import re
import resource
import signal
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

import models
from benchmarks import baseline as plain
from diffusion import samplers
from diffusion import vae as latents
from training import acceleration, finetuning
from training.state import TrainingState
from training.step import Batches, compute_gradients
from utils import seeding
from utils.errors import UserError

FACTOR = 8  # pixels a latent, of Stable Diffusion's VAE


# ------------------------------------------------------------------------------------------------------------ measuring

def alone(function, *args):
    """The result of a call in a new process; None where it ran out of memory."""
    context = multiprocessing.get_context("spawn")
    receives, sends = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sends, function, *args))
    process.start()
    sends.close()
    try:
        result = receives.recv()
    except EOFError:
        result = None
    process.join()
    if isinstance(result, UserError):
        raise result
    if process.exitcode not in (0, -signal.SIGKILL):  # killed: by the kernel, for want of memory
        raise UserError(f"{function.__name__}: its process ended with code {process.exitcode}, as it says above")
    return result


def _send(connection, function, *args):
    try:
        connection.send(function(*args))
    except UserError as e:
        connection.send(e)


def within_memory(function):
    """Makes a function that prepares its device, and returns None where memory does not suffice."""
    @functools.wraps(function)
    def wrapped(args, *more):
        if torch.device(args.device).type == "cuda":
            torch.cuda.set_device(torch.device(args.device).index or 0)
            if args.memory_limit:  # with what the driver and the kernels take beside PyTorch's allocator
                free, total = torch.cuda.mem_get_info()
                torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, args.memory_limit * 2 ** 30 / total - 1 + free / total)))
        try:
            return function(args, *more)
        except (MemoryError, RuntimeError) as e:  # torch.OutOfMemoryError is a RuntimeError
            if isinstance(e, MemoryError) or re.search("out of memory|can't allocate memory|ALLOC_FAILED", str(e)):
                return None
            raise
    return wrapped


def wait(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_gb(device):
    """Most memory this process ever had, GB (10^9): of the GPU, as PyTorch reserved it, or of the host."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved() / 1e9
    if not Path("/proc/self/status").exists():  # macOS, in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    status = Path("/proc/self/status").read_text()  # getrusage's maximum would include the parent's
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e9


def warm_up(args):
    """Steps before the first that is measured."""
    return 4 if torch.device(args.device).type == "cuda" else 1


def timed(step, args, before):
    """Seconds of each of --steps calls, after some that are not measured."""
    times = []
    for _ in range(before + args.steps):
        start = time.perf_counter()
        step()
        wait(args.device)
        times.append(time.perf_counter() - start)
    return times[before:]


def matmul_rate(device, dtype=torch.float32, n=4096, seconds=1.0):
    """Floating-point operations a second of a large matrix product, the best of several."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    many = 10 if torch.device(device).type == "cuda" else 1  # between two waits
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        at = time.perf_counter()
        for _ in range(many):
            a @ b
        wait(device)
        best = min(best, (time.perf_counter() - at) / many)
    return 2 * n ** 3 / best


def merge(turns):
    """Of the results of a way's turns: all times together, the highest peak, and what else the first says."""
    return None if None in turns else {**turns[0], "times": sum((t["times"] for t in turns), []), "peak": max(t["peak"] for t in turns)}


# ------------------------------------------------------------------------------------------------- network and training

def build(args, image_size, bf16):
    """A DiT with random weights on its device, and what trains. With bf16 its frozen matrices are never anything else."""
    side = image_size // FACTOR
    with torch.device("meta"):
        model = models.DiT_models[args.model](input_size=side)
    g = torch.Generator(args.device).manual_seed(0)
    state = {}
    for name, p in model.state_dict().items():
        narrow = bf16 and finetuning.parameter_kind(name) == "matrix"
        state[name] = torch.empty(p.shape, device=args.device, dtype=torch.bfloat16 if narrow else torch.float32)
        state[name].normal_(std=0.02, generator=g)
    state["pos_embed"] = models.pos_embed(model.pos_embed.shape[2], model.grid, model.grid)[None].to(args.device)
    model.load_state_dict(state, assign=True)
    return model, finetuning.set_trainable(model, "difffit")


def build_vae(args, ours):
    """Stable Diffusion's VAE, or one of its shape that is 16 times narrower, with random weights."""
    channels = (128, 256, 512, 512) if args.vae == "sd" else (8, 16, 32, 32)
    return AutoencoderKL(block_out_channels=channels, layers_per_block=2, latent_channels=4, norm_num_groups=min(32, channels[0]),
                         down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                         sample_size=256).requires_grad_(False).eval().to(
                             args.device, memory_format=torch.channels_last if ours else torch.contiguous_format)


def products(model, tokens, backward):
    """Floating-point operations of the matrix products that an image needs, with frozen matrices: no gradient of theirs.

    Forward: 24 T w^2 of the linear layers and 4 T^2 w of the attention a block; backward as much again, and 2.5 times as
    much, since attention is recomputed.
    """
    w, depth = model.pos_embed.shape[2], len(model.blocks)
    linear, attention = 24 * tokens * w ** 2 * depth, 4 * tokens ** 2 * w * depth
    return linear * (1 + backward) + attention * (1 + 2.5 * backward)


def profiled(step, device):
    """The operations of one step that took longest, a line each."""
    from torch.profiler import ProfilerActivity, profile
    cuda = torch.device(device).type == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as prof:
        step()
        wait(device)
    rows = [e for e in prof.key_averages() if not cuda or e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    spent = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in rows}
    total = sum(spent.values())
    return [f"    {100 * t / total:5.1f} %  {k[:90]}" for k, t in sorted(spent.items(), key=lambda item: -item[1])[:8]]


@within_memory
def plain_training(args, image_size, batch):
    model, trained = build(args, image_size, bf16=False)
    vae = build_vae(args, ours=False)
    trainer = plain.Trainer(model, vae, trained)
    mosaics = np.random.default_rng(0).integers(0, 256, (batch, image_size, image_size, 3), np.uint8)
    labels = torch.zeros(batch, dtype=torch.long, device=args.device)
    times = timed(lambda: trainer.step(mosaics, labels), args, warm_up(args))
    peak = peak_gb(args.device)
    with torch.no_grad():
        pixels = latents.to_pixels(mosaics, args.device).contiguous()  # as the step lays them out
        vae_time = float(np.median(timed(lambda: vae.encode(pixels), args, 0)))
    return dict(times=times, peak=peak, vae=vae_time, tokens=model.grid ** 2, products=products(model, model.grid ** 2, True),
                rate=matmul_rate(args.device), profile=args.profile and profiled(lambda: trainer.step(mosaics, labels), args.device))


@within_memory
def our_training(args, image_size, batch):
    bf16 = args.precision == "bf16"
    model, trained = build(args, image_size, bf16)
    model.save_memory(not args.keep_activations, args.grad_checkpoint).train()
    start = time.perf_counter()
    said = acceleration.compile_blocks(model, args.device, args.compile)
    options = argparse.Namespace(global_seed=0, global_batch_size=batch, accum=args.accum, label_dropout=0.1, prefetch=True, lr=5e-4,
                                 max_steps=10 ** 6, lr_schedule="constant", weight_decay=0.0, ema_decay=0.9999, device=args.device,
                                 precision=args.precision)
    side = image_size // FACTOR
    moments = torch.randn(2 * batch, 8, side, side, generator=torch.Generator().manual_seed(0))
    batches = Batches(moments, torch.zeros(2 * batch, dtype=torch.long), dict(scaling_factor=0.18215), model.num_classes, options)
    state, names = TrainingState(trained, options), list(trained.values())

    def step():
        state.step += 1
        state.update(*compute_gradients(model, batches.take(state.step), names, options))
        state.optimizer.zero_grad(set_to_none=True)

    step()
    wait(args.device)
    first = time.perf_counter() - start
    times = timed(step, args, warm_up(args) - 1)
    peak = peak_gb(args.device)
    return dict(times=times, peak=peak, first=first, said=said, tokens=model.grid ** 2, products=products(model, model.grid ** 2, True),
                rate=matmul_rate(args.device, torch.bfloat16 if bf16 else torch.float32),
                profile=args.profile and profiled(step, args.device))


# ------------------------------------------------------------------------------------------------------------- sampling

@within_memory
def sampling(args, way):
    """A step of a batch, and the VAE's decoding of it."""
    ours = way == "ours"
    bf16 = ours and args.precision == "bf16"
    model, _ = build(args, args.image_size, bf16)
    model.requires_grad_(False).eval()
    vae, side = build_vae(args, ours), args.image_size // FACTOR
    if ours:
        said = acceleration.compile_blocks(model, args.device, args.compile)
    else:
        said = None
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    network = model if ours else lambda *a: plain.forward(model, *a)
    y, clock, times = torch.zeros(args.batch_size, dtype=torch.long), None, []

    def step():
        nonlocal clock
        wait(args.device)
        now = time.perf_counter()
        times.append(now - clock)
        clock = now

    generators = [seeding.seeded_generator(0, i) for i in range(args.batch_size)]
    clock = time.perf_counter()
    with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=bf16):
        z = samplers.sample(network, (4, side, side), y, model.num_classes, generators, "ddpm", args.steps + 1, device=args.device,
                             callback=step)

    @torch.no_grad()
    def decode():
        start = time.perf_counter()
        if ours:
            latents.decode(vae, z, args.vae_precision == "bf16")
        else:
            latents.from_pixels(vae.decode(z / vae.config.scaling_factor).sample)
        return time.perf_counter() - start

    decoded = [decode() for _ in range(warm_up(args))]  # on a GPU the first ones load its kernels
    return dict(times=times[1:], decode=decoded[-1:], peak=peak_gb(args.device), said=said)
