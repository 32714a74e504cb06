"""What a training run would train and what memory it needs: `train.py --dry-run`."""
from dataclasses import dataclass

import torch

import models
from training.acceleration import narrow_matrices
from training.finetuning import describe, parameter_kind, set_trainable
from utils.precision import NARROW_DTYPES, autocast

BYTES_PER_ATTENTION_WEIGHT = 4    # PyTorch's math attention computes them in fp32


@dataclass(frozen=True)
class MemoryOptions:
    """What the activations of a step depend on.

    :param micro_batch: images that one device computes at a time
    :param grad_checkpoint: K: every K-th block is recomputed as a whole; 0: none
    :param fast_bf16: False for GPUs before Ampere: their bf16 attention keeps its weights
    """
    micro_batch: int
    precision: str = "bf16"
    grad_checkpoint: int = 0
    keep_activations: bool = False
    fast_bf16: bool = True

    @property
    def keeps_attention_weights(self):
        return self.precision == "bf16" and not self.fast_bf16


def print_dry_run(name, config, method, volumes, options, preview_vae=None, tokens=None,
                  adapters=None, token_drop=None):
    """Prints tokens, trainable parameters by kind, and the memory that each device needs.

    :param name: name of the model
    :param config: constructor arguments of models.DiT
    :param method: name in TUNING_METHODS
    :param volumes: number of volumes to train on
    :param options: MemoryOptions
    :param preview_vae: the VAE that --sample-every loads beside the model; None: none
    :param tokens: number of tokens that are computed; None: all
    :param adapters: LoraOptions of a method with adapters
    :param token_drop: TokenDrop, or None if every step computes all of these
    """
    with torch.device("meta"):
        model = models.DiT(**config)
    trained = set_trainable(model, method, adapters)
    total = sum(p.numel() for key, p in model.named_parameters() if key != "pos_embed")
    latent = f"{config['in_channels']} x {config['input_size']} x {config['input_size']}"
    print(f"{name}: {config['depth']} blocks, width {config['hidden_size']}, "
          f"{config['num_heads']} heads, {total:,} parameters")
    part = f"{tokens:,} of " if tokens else ""
    print(f"latents {latent}, {part}{model.grid ** 2:,} tokens; {volumes} volumes")
    tokens = tokens or model.grid ** 2
    by_block = [tokens] * config["depth"]
    if token_drop:
        print(token_drop.describe(tokens))
        reduced = activation_bytes(config, method, token_drop.tokens_by_block(tokens), options,
                                   adapters)
        if not token_drop.full_steps:
            by_block = token_drop.tokens_by_block(tokens)
    n = _print_trainable(trained, method, total, adapters)
    activations = activation_bytes(config, method, by_block, options, adapters)
    frozen = (total - n) * (2 if options.precision in NARROW_DTYPES else 4)
    rows = {"weights": frozen + 4 * n, "gradients, AdamW, EMA": 16 * n,
            f"activations of {options.micro_batch} images": activations}
    if options.keeps_attention_weights:
        rows["attention weights"] = attention_bytes(config, by_block, options)
        print("warning: --precision bf16: this GPU has no bf16 attention (compute capability below "
              "8.0) and keeps whole attention matrices; --precision fp16 does not")
    if preview_vae:
        rows["VAE of --sample-every"] = decoder_bytes(preview_vae, config["input_size"])
    estimated = " the VAE is estimated from its weights and largest layer;" if preview_vae else ""
    print(f"memory on each device, GB (activations are measured on one block here;{estimated} "
          "workspace comes on top):")
    for what, size in {**rows, "all": sum(rows.values())}.items():
        print(f"  {what:24} {size / 1e9:7.2f}")
    if token_drop and token_drop.full_steps:
        print(f"  activations before the last {token_drop.full_steps} steps: {reduced / 1e9:.2f}")
    print(f"a checkpoint: {8 * n / 1e6:.1f} MB; the state to resume from: {16 * n / 1e6:.1f} MB")


def _print_trainable(trained, method, total, adapters):
    """Prints the trainable parameters by kind. Returns the number of their values."""
    kinds = {}
    for key, p in trained.items():
        kinds.setdefault(parameter_kind(key), []).append(p.numel())
    print(f"trainable parameters with --tune {describe(method, adapters)}:")
    for kind, sizes in kinds.items():
        print(f"  {kind:12} {len(sizes):4} tensors {sum(sizes):13,} values")
    n = sum(p.numel() for p in trained.values())
    print(f"  {'all':12} {len(trained):4} tensors {n:13,} values, {n / total:.3%} of the model")
    return n


def activation_bytes(config, method, tokens, options, adapters=None):
    """Bytes of activations that one device keeps for the backward pass.

    :param tokens: number of tokens that each block computes, a list
    :param adapters: LoraOptions of a method with adapters
    """
    width, depth = config["hidden_size"], config["depth"]
    # fp16 takes what bf16 takes, and is measured as bf16: not every CPU computes in fp16
    precision = "bf16" if options.precision in NARROW_DTYPES else "fp32"
    block = models.DiTBlock(width, config["num_heads"], gamma=config["gamma_blocks"] > 0)
    set_trainable(block, method, adapters)
    narrow_matrices(block, precision)

    def measure(n, batch, lean):
        block.lean = lean
        x = torch.zeros(batch, n, width, requires_grad=True)
        return kept_for_backward(block, precision, x, torch.zeros(batch, width))

    def measure_batch(n):
        lean = not options.keep_activations
        one, two = measure(n, 1, lean), measure(n, 2, lean)
        # what does not grow with the batch are the bf16 copies of matrices that train
        return one + (options.micro_batch - 1) * (two - one)

    recomputed = _recomputed_blocks(depth, options)  # only their fp32 input is kept
    in_full = [n for i, n in enumerate(tokens) if i not in recomputed]
    kept = sum(in_full.count(n) * measure_batch(n) for n in set(in_full))
    kept += options.micro_batch * width * 4 * sum(tokens[i] for i in recomputed)
    if depth - 1 in recomputed:
        # the last block is computed again while the activations of all others are kept
        kept += options.micro_batch * measure(tokens[-1], 1, lean=False)
    return kept


def _recomputed_blocks(depth, options):
    """Indices of the blocks that --grad-checkpoint recomputes, a range."""
    k = options.grad_checkpoint
    return range(0, depth, k) if k else range(0)


def attention_bytes(config, tokens, options):
    """Bytes of the attention weights that PyTorch's math attention keeps in all blocks.

    A block that is recomputed holds its own only while it is computed; one is counted for them.

    :param tokens: number of tokens that each block computes, a list
    """
    recomputed = _recomputed_blocks(config["depth"], options)
    squares = [n ** 2 for i, n in enumerate(tokens) if i not in recomputed]
    squares += [max(tokens[i] for i in recomputed) ** 2] if recomputed else []
    weights = config["num_heads"] * sum(squares) * options.micro_batch
    return weights * BYTES_PER_ATTENTION_WEIGHT


def decoder_bytes(vae, side):
    """Bytes that the VAE takes while it decodes one mosaic, estimated: its weights, and input and
    output of its largest layer, whose sizes are measured on tensors without values.

    :param vae: AutoencoderKL
    :param side: of the latents
    """
    weights = sum(p.numel() * p.element_size() for p in vae.parameters())
    largest = 0

    def compare(module, inputs, output):
        nonlocal largest
        tensors = [x for x in (*inputs, output) if isinstance(x, torch.Tensor)]
        largest = max(largest, sum(x.numel() * x.element_size() for x in tensors))

    with torch.device("meta"):
        latents = torch.zeros(1, vae.config.latent_channels, side, side)
        empty = type(vae).from_config(vae.config)
    leaves = [module for module in empty.modules() if not any(module.children())]
    hooks = [module.register_forward_hook(compare) for module in leaves]
    with torch.no_grad():
        empty.decode(latents)
    for hook in hooks:
        hook.remove()
    return weights + largest


def kept_for_backward(module, precision, *inputs, **more):
    """Bytes of activations that a block or a model keeps for its backward pass, measured.

    :param precision: compute dtype, see utils.precision
    :param inputs, more: of the module's forward pass
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # the tensor is held, so that no address is used twice
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, autocast("cpu", precision):
        module(*inputs, **more)
    return sum(size for size, _ in kept.values())
