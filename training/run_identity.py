"""What makes a run what it is: flags and content that a resumed run must have in common with it."""
import os

# flags that name files: what counts is what the files hold, see CONTENT
PATH_FLAGS = ("data_path", "vae", "ckpt", "base")
# flags that may differ between the command that began a run and the one that resumes it
FREE_FLAGS = (
    *PATH_FLAGS, "image_size", "accum", "results_dir", "resume", "max_steps", "epochs",
    "max_minutes", "log_every", "ckpt_every", "ckpt_minutes", "keep", "keep_every", "sample_every",
    "skip_nonfinite", "device", "compile", "grad_checkpoint", "keep_activations", "prefetch",
    "cuda_graphs", "dry_run", "val_every", "val_split", "wandb")
# flags that earlier versions lacked, and what their runs did; the EMA's state knows it better
LATER_FLAGS = {
    "ema_warmup": True, "tokens": "all", "token_margin": 0, "augment": 1, "augment_flip": 0.0,
    "augment_rotate": 0.0, "augment_scale": 0.0, "augment_shift": 0.0, "augment_gamma": 0.0,
    "lora_rank": None, "lora_alpha": None, "lora_targets": None,
    "condition_on": [], "condition_dropout": 0.1,
    "token_drop": 0.0, "token_route": 0.0, "route_blocks": None, "full_steps": 0}
# what a resumed run must have in common with its state, beyond the flags: metadata key and name
CONTENT = {
    "header": "the data folder's geometry",
    "vae": "the VAE",
    "begun_from": "the weights of --ckpt",
    "data_key": "the mosaics or their classes",
    "covariates": "the covariates of the volumes",
}


def depends_on_its_end(flags):
    """Whether the last step decides what earlier steps do, so that it cannot be moved.

    :param flags: {name: value} of all flags, as `args.json` holds them
    """
    return flags.get("lr_schedule") == "cosine" or bool(flags.get("full_steps"))


def identity(flags):
    """The flags that make a run what it is: those on which a resumed run must agree.

    :param flags: see `depends_on_its_end`
    """
    fixed = ("max_steps",) if depends_on_its_end(flags) else ()
    return {name: value for name, value in flags.items()
            if name not in FREE_FLAGS or name in fixed}


def content_of(metadata):
    """What a run was given, as it is in the metadata of its states, by checksums: never by paths.

    :return: {key of CONTENT: value to compare}
    """
    return {key: _checksum_or_value(metadata.get(key)) for key in CONTENT}


def _checksum_or_value(value):
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def differing_flags(ours, theirs):
    """Names of the flags that make a run what it is and differ between two sets of flags."""
    ours, theirs = identity(ours), LATER_FLAGS | theirs if isinstance(theirs, dict) else {}
    return [name for name in ours if theirs.get(name) != ours[name]]


def has_same_paths(ours, theirs, names=PATH_FLAGS):
    """Whether two sets of flags name the same data, VAE and weights, however they spell it."""
    return all(_spelled_out(ours.get(name)) == _spelled_out(theirs.get(name)) for name in names)


def _spelled_out(path):
    is_path = isinstance(path, str) and path and "\0" not in path
    return os.path.realpath(path) if is_path else path
