"""What a training run will train and what memory it needs, told before anything is allocated: `train.py --dry-run`."""
import torch

import models
from training import acceleration, finetuning
from utils import distributed


def kept_for_backward(block, x, c, precision):
    """Bytes of activations that one block keeps for its backward pass: measured, not estimated."""
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        block(x.requires_grad_(), c)
    return sum(n for n, _ in kept.values())


def dry_run(args, config, volumes):
    """Prints what would train, and what it needs: tokens, counts by kind, memory."""
    with torch.device("meta"):
        model = models.DiT(**config)
    trained = finetuning.set_trainable(model, args.tune)
    tokens, width, depth = model.grid ** 2, config["hidden_size"], config["depth"]
    total = sum(p.numel() for n, p in model.named_parameters() if n != "pos_embed")
    print(f"{args.model}: {depth} blocks, width {width}, {config['num_heads']} heads, {total:,} parameters")
    print(f"latents {config['in_channels']} x {config['input_size']} x {config['input_size']}, {tokens:,} tokens; {volumes} volumes")
    kinds = {}
    for name, p in trained.items():
        kinds.setdefault(finetuning.parameter_kind(name), []).append(p.numel())
    print(f"trains with --tune {args.tune}:")
    for kind, sizes in kinds.items():
        print(f"  {kind:12} {len(sizes):4} tensors {sum(sizes):13,} values")
    n = sum(p.numel() for p in trained.values())
    print(f"  {'all':12} {len(trained):4} tensors {n:13,} values, {n / total:.3%} of the model")

    micro = args.global_batch_size // args.accum // distributed.world_size()
    block = models.DiTBlock(width, config["num_heads"], gamma=args.gamma_blocks > 0)
    finetuning.set_trainable(block, args.tune)
    if args.precision == "bf16":
        acceleration.matrices_to_bf16(block)
    block.lean = not args.keep_activations
    first, two = (kept_for_backward(block, torch.zeros(n, tokens, width), torch.zeros(n, width), args.precision) for n in (1, 2))
    one = first + (micro - 1) * (two - first)  # what does not grow are the bf16 copies of matrices that train
    whole = len(range(0, depth, args.grad_checkpoint)) if args.grad_checkpoint else 0  # blocks of which only the input is kept
    kept = (depth - whole) * one + whole * micro * tokens * width * 4
    if whole and (depth - 1) % args.grad_checkpoint == 0:  # the last block is computed once more while all the others' are there
        block.lean = False
        kept += micro * kept_for_backward(block, torch.zeros(1, tokens, width), torch.zeros(1, width), args.precision)
    frozen = (total - n) * (2 if args.precision == "bf16" else 4)
    rows = {"weights": frozen + 4 * n, "gradients, AdamW, EMA": 16 * n, f"activations of {micro} images": kept}
    print("memory on each device, GB (activations measured on one block here; workspace comes on top):")
    for what, size in {**rows, "all": sum(rows.values())}.items():
        print(f"  {what:24} {size / 1e9:7.2f}")
    print(f"a checkpoint: {8 * n / 1e6:.1f} MB; the state to resume from: {16 * n / 1e6:.1f} MB")
