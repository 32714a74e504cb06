"""Command-line flags that scripts share: the parser, checked types, and the flags of the device."""
import argparse
import os

from utils.version import __version__


def _count_cores():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


CPU_CORES = _count_cores()  # cores that this process may use
DEVICE_TYPES = ("cpu", "cuda", "mps")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the description's line breaks and adds each flag's default to its help."""

    def _get_help_string(self, action):
        text = action.help or ""
        if action.default in (None, "", [], argparse.SUPPRESS) or isinstance(action.default, bool):
            return text  # such a help text says itself what happens without the flag
        default = action.default
        if isinstance(default, (list, tuple)):
            default = " ".join(map(str, default))
        return f"{text} (default: {str(default).replace('%', '%%')})"


def make_parser(description):
    """An ArgumentParser that shows defaults, knows --version and refuses abbreviated flags.

    Abbreviations are refused so that a SLURM script stays valid when a flag is added.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"MosaicDiT {__version__}",
                        help="print the version of MosaicDiT and exit")
    return parser


def flag_of(name):
    """The flag of an argument: "max_steps" -> "--max-steps"."""
    return "--" + name.replace("_", "-")


# ------------------------------------------------------------------------------------ value types

def whole_number(text):
    """A flag's type: a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def non_negative(text):
    """A flag's type: a finite number, 0 or more."""
    value = _number(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a finite number, 0 or more")
    return value


def positive(text):
    """A flag's type: a finite number above 0."""
    value = _number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a finite number above 0")
    return value


def shard(text):
    """A flag's type: I/N, part I of 1…N of the work, as (I, N)."""
    try:
        part, parts = (int(number) for number in text.split("/"))
    except ValueError:
        part = parts = 0
    if not 1 <= part <= parts:
        raise argparse.ArgumentTypeError(f"{text!r}: must be I/N with 1 <= I <= N, such as 3/8")
    return part, parts


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float("nan")


# --------------------------------------------------------------------------------- shared flags

def add_device_flag(group):
    """Adds --device, checked when it is parsed."""
    import torch  # here, as scripts that need no device need not wait for it

    group.add_argument(
        "--device", type=_device, default="cuda" if torch.cuda.is_available() else "cpu",
        help="device to compute on: cpu, cuda, cuda:N, or mps (Apple GPUs); cuda if such a GPU is "
        "present, else cpu")


def _device(text):
    """A flag's type: a device that exists on this machine."""
    import torch
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; give cpu or cuda") from None
    if device.type not in DEVICE_TYPES:
        raise argparse.ArgumentTypeError(
            f"{text!r}: not supported; give one of {', '.join(DEVICE_TYPES)}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise argparse.ArgumentTypeError(
            f"{text!r}: PyTorch sees no Apple GPU on this machine; give cpu")
    gpus = torch.cuda.device_count()
    if device.type == "cuda" and not (device.index or 0) < gpus:
        raise argparse.ArgumentTypeError(f"{text!r}: PyTorch sees {gpus} GPUs on this machine")
    return text


def add_compile_flag(group):
    """Adds --compile and --no-compile; None if the user gives neither."""
    group.add_argument(
        "--compile", action=argparse.BooleanOptionalAction,
        help="compile the transformer blocks with torch.compile; default: on GPUs, if the "
        "machine has a working compiler")


def add_precision_flag(group, what="the transformer", flag="--precision", default="bf16"):
    """Adds a flag for the compute dtype; parameters that train stay in fp32.

    :param default: None offers fp16, too, and leaves the choice to
        `utils.precision.resolve_precision`
    """
    if default is None:
        group.add_argument(
            flag, choices=("bf16", "fp16", "fp32"),
            help=f"compute dtype of {what}; default: bf16, but fp16 on GPUs before Ampere "
            "(compute capability below 8.0), where bf16 takes 9 to 18 GB more per image")
    else:
        group.add_argument(flag, choices=("bf16", "fp32"), default=default,
                           help=f"compute dtype of {what}")


def add_augmentation_flags(group):
    """Adds --augment and the ranges that variants are drawn from, see mri.augmentation."""
    group.add_argument(
        "--augment", type=int, default=1, metavar="K",
        help="number of variants of each volume that are encoded: itself, and K - 1 that are drawn "
        "from the ranges below; each step draws one of them")
    group.add_argument("--augment-flip", type=non_negative, default=0.0, metavar="P",
                       help="probability that a variant is mirrored, left and right swapped")
    group.add_argument("--augment-rotate", type=non_negative, default=0.0, metavar="DEG",
                       help="largest rotation of a variant about each axis, degrees")
    group.add_argument("--augment-scale", type=non_negative, default=0.0, metavar="SHARE",
                       help="largest change of a variant's size along each axis, a fraction of it, "
                       "below 1")
    group.add_argument("--augment-shift", type=non_negative, default=0.0, metavar="MM",
                       help="largest shift of a variant along each axis, mm")
    group.add_argument("--augment-gamma", type=non_negative, default=0.0, metavar="G",
                       help="largest absolute logarithm of the exponent of a variant's "
                       "intensities, which are in [0, 1]")
