"""A small 3D network that learns a label from a few dozen volumes, within seconds on a CPU."""
import numpy as np
import torch
from torch import nn
from torch.nn import functional

SIDE = 32               # voxels a side of its input; larger volumes are averaged down to it
CHANNELS = (8, 16, 32)  # of three convolutions with stride 2
STEPS = 100
BATCH = 16
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
DESCRIPTION = (f"{len(CHANNELS)} convolutions ({', '.join(map(str, CHANNELS))} channels, "
               f"stride 2) and a linear layer, {STEPS} steps of AdamW with {BATCH} volumes each")


def network_input(volumes):
    """Volumes as the network takes them.

    :param volumes: (N, D, D, D) uint8
    :return: (N, 1, S, S, S) float32 in [0, 1], S at most SIDE
    """
    out = []
    for volume in volumes:
        x = torch.from_numpy(np.ascontiguousarray(volume))[None, None].float() / 255
        if x.shape[-1] > SIDE:
            x = functional.adaptive_avg_pool3d(x, SIDE)
        out.append(x)
    return torch.cat(out)


class SmallNetwork(nn.Module):
    """(N, 1, S, S, S) -> (N, outputs)."""

    def __init__(self, outputs):
        super().__init__()
        layers, inputs = [], 1
        for channels in CHANNELS:
            layers += [nn.Conv3d(inputs, channels, 3, stride=2, padding=1),
                       nn.GroupNorm(4, channels), nn.ReLU()]
            inputs = channels
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(8 * inputs, outputs)

    def forward(self, x):
        # means over octants: where something is matters, as brains are in one space
        return self.last(functional.adaptive_avg_pool3d(self.layers(x), 2).flatten(1))


def train(x, targets, outputs, seed, device="cpu"):
    """A function that predicts from volumes, after training on these.

    :param x: (N, 1, S, S, S), of `network_input`
    :param targets: (N,) indices of classes, or float numbers if outputs is 1
    :param outputs: number of classes; 1: numbers are predicted
    :param seed: of the first weights and of the batches
    :return: function (M, 1, S, S, S) -> (M, classes) probabilities or (M,) numbers
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallNetwork(outputs).to(device)
    rng = np.random.default_rng(seed)
    mean, scale = x.mean(0), x.std()
    y, center, spread = _targets(targets, outputs)
    y = y.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    loss_of = _loss(y, outputs)
    for _ in range(STEPS):
        batch = rng.choice(len(x), min(BATCH, len(x)), replace=False)
        found = network(((x[batch] - mean) / scale).to(device))
        optimizer.zero_grad()
        loss_of(found, y[batch]).backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def predict(volumes):
        found = network(((volumes - mean) / scale).to(device)).cpu()
        if outputs == 1:
            return (found[:, 0] * spread + center).double().numpy()
        return found.double().softmax(1).numpy()

    return predict


def _targets(targets, outputs):
    """Targets as a tensor; the mean and the deviation of numbers, which it is over."""
    if outputs > 1:
        return torch.as_tensor(targets), 0.0, 1.0
    y = torch.as_tensor(np.asarray(targets), dtype=torch.float32)
    center, spread = float(y.mean()), max(float(y.std()), 1e-12)
    return (y - center) / spread, center, spread


def _loss(y, outputs):
    """The loss of a batch; of classes, each counts as much as the others, however rare."""
    if outputs == 1:
        return lambda found, target: functional.mse_loss(found[:, 0], target)
    counts = torch.bincount(y, minlength=outputs).clamp(min=1)
    weight = len(y) / (outputs * counts.float())
    return lambda found, target: functional.cross_entropy(found, target, weight=weight)
