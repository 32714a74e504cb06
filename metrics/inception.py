"""Features of the FID Inception net on slices of volumes, and torchmetrics' FID on them."""
from pathlib import Path

import numpy as np
import torch

from utils.cli import brief

DIMENSIONS = 2048
VIEW_AXIS = {"A": 2, "C": 1, "S": 0}  # axis of a RAS volume across the axial, coronal, sagittal view
FILE = "weights-inception-2015-12-05-6726825d.pth"


def find_weights(folder):
    """The file of weights in download.py's folder, or in torch-fidelity's own cache; None if there is none."""
    places = [Path(folder) / FILE, Path(torch.hub.get_dir()) / "checkpoints" / FILE]
    return next((p for p in places if p.is_file()), None)


def load_net(weights, device="cpu"):
    """torchmetrics' Inception net for FID, pool features (2048), images resized with antialiasing.

    :param weights: file in the format of pt_inception-2015-12-05, read as weights only
    :raises ValueError: the weights are unsafe, or not those of the net
    """
    from torchmetrics.image.fid import NoTrainInceptionV3
    try:  # torch-fidelity would unpickle anything: what passes here holds tensors alone
        torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged file can end the unpickler in any way
        raise ValueError(f"{weights}: not a file of weights alone ({brief(e, 80)})") from None
    try:
        return NoTrainInceptionV3("inception-v3-compat", [str(DIMENSIONS)], str(weights)).to(device)
    except (RuntimeError, TypeError, AttributeError) as e:
        raise ValueError(f"{weights}: not the weights of the FID Inception net ({brief(e, 80)})") from None


def view_slices(volumes, view, slices=1):
    """The middle slices of a view as RGB images, anterior or superior up: (N, K, 3, D, D) uint8.

    :param volumes: (N, D, D, D) uint8, axes right, anterior, superior
    :param view: "A", "C" or "S"
    :param slices: K; slice D // 2, and its neighbours on both sides (one more below where K is even)
    """
    axis = VIEW_AXIS[view] + 1
    first = volumes.shape[axis] // 2 - slices // 2
    if first < 0 or first + slices > volumes.shape[axis]:
        raise ValueError(f"{slices} slices of {volumes.shape[axis]}")
    chosen = np.moveaxis(np.take(volumes, range(first, first + slices), axis), axis, 1)
    return torch.from_numpy(np.repeat(np.rot90(chosen, axes=(2, 3))[:, :, None], 3, axis=2).copy())


@torch.no_grad()
def features(net, volumes, view, slices=1, batch=32, device="cpu", callback=None):
    """Pool features of the middle slices, (N, K, 2048) float32.

    :param callback: called with the number of volumes done
    """
    out = []
    step = max(1, batch // slices)
    for i in range(0, len(volumes), step):
        images = view_slices(volumes[i:i + step], view, slices)
        parts = [net(part.to(device)).float().cpu() for part in images.flatten(0, 1).split(batch)]
        out.append(torch.cat(parts).unflatten(0, (len(images), slices)))
        if callback:
            callback(len(images))
    return torch.cat(out).numpy()


class _Passed(torch.nn.Module):
    """Stands for the net where features are at hand already."""
    num_features = DIMENSIONS

    def forward(self, x):
        return x


def fid(real, fake):
    """FID (Heusel et al. 2017) by torchmetrics' FrechetInceptionDistance.

    :param real, fake: (N, 2048), (M, 2048) features
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    metric = FrechetInceptionDistance(feature=_Passed())
    metric.update(torch.from_numpy(real).double(), real=True)
    metric.update(torch.from_numpy(fake).double(), real=False)
    return float(metric.compute())
