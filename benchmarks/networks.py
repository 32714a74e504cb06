"""DiT and VAE with random weights: they cost what trained ones cost."""
from dataclasses import dataclass

import torch

import models
from training import finetuning
from utils.errors import UserError
from utils.precision import NARROW_DTYPES

VAE_FACTOR = 8                      # pixels per latent along a side, of Stable Diffusion's VAE
VAE_CHANNELS = {                    # of the VAE's blocks
    "sd": (128, 256, 512, 512),     # Stable Diffusion's
    "tiny": (8, 16, 32, 32),        # 16 times narrower, for tests
}


@dataclass(frozen=True, kw_only=True)
class NetworkSetup:
    """What is measured. Picklable, as each measurement runs in a process of its own."""
    model: str                           # name in models.DiT_models
    image_size: int                      # side of the mosaics, pixels
    batch_size: int                      # mosaics per step
    steps: int                           # measured steps
    device: str
    precision: str = "bf16"              # compute dtype of the optimized way
    compile: bool | None = None          # None: as training.acceleration.accelerate_blocks decides
    memory_limit: float | None = None    # GiB of the GPU
    vae: str = "sd"                      # key of VAE_CHANNELS
    foreground: float = 0.68             # share of the tokens, in the way of that name

    @property
    def latent_side(self):
        return self.image_size // VAE_FACTOR

    @property
    def tokens(self):
        """Tokens of one mosaic."""
        return (self.latent_side // models.config_of(self.model)["patch_size"]) ** 2


def foreground_tokens(setup):
    """As many tokens as a share of `setup.foreground`, evenly spread, (K,) int64.

    Which ones they are makes no difference to their cost.
    """
    count = max(1, round(setup.foreground * setup.tokens))
    return torch.arange(count, device=setup.device) * setup.tokens // count


def describe(setup):
    """The model, the image size, the batch and the memory limit in words."""
    size = setup.image_size
    text = f"{setup.model}, {size} x {size}, {setup.tokens} tokens, batch {setup.batch_size}"
    return text + (f", at most {setup.memory_limit:g} GiB" if setup.memory_limit else "")


def check_image_size(model, image_size, flag):
    """Raises UserError, naming `flag`, unless the model can be built for mosaics of this side."""
    unit = VAE_FACTOR * models.config_of(model)["patch_size"]
    if image_size < unit or image_size % unit:
        raise UserError(f"{flag} {image_size}: must be a multiple of {unit} for {model}")


def check_sizes(model, image_sizes, batch_sizes, accum, plural):
    """Raises UserError for a mosaic that the model cannot be built for, or a batch in parts that
    are not whole.

    :param accum: number of parts
    :param plural: ending of --image-size and --batch-size
    """
    for image_size in image_sizes:
        check_image_size(model, image_size, f"--image-size{plural}")
    for batch_size in batch_sizes:
        if batch_size < 1 or batch_size % accum:
            raise UserError(f"--batch-size{plural} {batch_size}: must be at least 1, "
                            "and --accum must divide it")


def random_dit(setup, precision):
    """A DiT on its device, with everything frozen that DiffFit freezes.

    :param setup: NetworkSetup
    :param precision: compute dtype; frozen matrices are created in it, so that they never take
        the memory of fp32
    :return: model, {name: trainable parameter}
    """
    with torch.device("meta"):
        model = models.DiT_models[setup.model](input_size=setup.latent_side)
    generator = torch.Generator(setup.device).manual_seed(0)
    state = {}
    for name, p in model.state_dict().items():
        is_matrix = finetuning.parameter_kind(name) == "matrix"
        dtype = NARROW_DTYPES.get(precision, torch.float32) if is_matrix else torch.float32
        state[name] = torch.empty(p.shape, device=setup.device, dtype=dtype)
        state[name].normal_(std=0.02, generator=generator)
    width = model.pos_embed.shape[2]
    positions = models.pos_embed(width, model.grid, model.grid)             # (T, width)
    state["pos_embed"] = positions[None].to(setup.device)
    model.load_state_dict(state, assign=True)
    return model, finetuning.set_trainable(model, "difffit")


def random_vae(setup, memory_format):
    """An AutoencoderKL of Stable Diffusion's shape, or a narrow one, frozen, on its device.

    :param setup: NetworkSetup
    :param memory_format: torch.channels_last or torch.contiguous_format
    """
    import diffusers  # here, as the optimized training step does without it

    channels = VAE_CHANNELS[setup.vae]
    vae = diffusers.AutoencoderKL(
        block_out_channels=channels, layers_per_block=2, latent_channels=4, sample_size=256,
        norm_num_groups=min(32, channels[0]),
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels))
    return vae.requires_grad_(False).eval().to(setup.device, memory_format=memory_format)
