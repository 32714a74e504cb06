"""What all metrics are given besides the volumes, and how one says that it cannot be computed."""
from dataclasses import dataclass
from pathlib import Path


class NotComputed(Exception):
    """This metric cannot be computed here. The message says why, and what to do about it.

    The other metrics are computed all the same; reports show the reason.
    """


@dataclass(frozen=True)
class MetricOptions:
    """The options of all metrics; each uses those that concern it."""
    names: tuple = ()                       # metrics to compute, as --metrics names them
    protocol: str = "kwon2019"              # of MS-SSIM, see ms_ssim.PROTOCOLS
    pairs: int | None = 20_000              # random pairs per set for MS-SSIM; None: all pairs
    shortlist: int = 100                    # most correlated training volumes to search by MS-SSIM
    mmd_batch: int | None = None            # batch of the linear MMD; None: whole sets at once
    mmd_range: tuple = (0.0, 1.0)           # intensities of voxels for MMD: lowest, highest
    slices: int = 1                         # middle slices of each view, for Inception features
    features: Path | None = None            # a user's network of features, see feature_networks
    utility: str | None = None              # label that classifiers are trained for
    inception_weights: Path | None = None   # None: looked for, see inception.find_weights
    meshnet: Path | None = None             # folder of the network for anatomy; None: in weights/
    anatomy_real: tuple = ()                # tables of structures' volumes; (): the network
    anatomy_synthetic: tuple = ()
    seed: int = 0                           # of random pairs, batches and subsets
    memory_gb: float = 4.0                  # RAM to use; at most half of it for blocks of volumes
    device: str = "cpu"
