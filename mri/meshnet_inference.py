"""A MeshNet's scores of one whole volume, in as little time and memory as they take.

What comes out is what `MeshNet.forward` computes, up to rounding: instance norms take their
statistics from the whole volume. The activations lie in memory voxel by voxel, their channels side
by side, as the fastest convolutions take them. Each layer passes over them twice, a few planes at a
time: convolution with the sums for the norm, then norm and activation.
"""
import torch
import torch.nn.functional as F

from mri.meshnet import ACTIVATIONS, NORM_EPSILON

SLAB_VOXELS = 2 ** 20      # that a convolution makes at once


def infer(network, volume, finish, dtype=torch.float32):
    """What a function makes of the scores of each voxel.

    :param network: MeshNet
    :param volume: (X, Y, Z) float32 tensor, intensities in [0, 1], axes LIA
    :param finish: function of the scores of a few planes, (classes, x, Y, Z) float32 -> (x, Y, Z)
    :param dtype: of the activations: float32 or bfloat16
    :return: (X, Y, Z), of the dtype of `finish`
    """
    *hidden, last = network.blocks
    halo = max(block.reach for block in hidden)
    padded = _padded(volume.shape, 1, halo, dtype, volume.device)
    planes = _without_halo(padded, halo)
    planes[..., 0] = volume
    raw = planes
    for block in hidden:
        if raw is planes or raw.shape[-1] != block.channels:
            raw = torch.empty(*volume.shape, block.channels, dtype=dtype, device=volume.device)
        scale, shift = _convolve(block, padded, halo, raw)
        if planes.shape[-1] != block.channels:
            padded = _padded(volume.shape, block.channels, halo, dtype, volume.device)
            planes = _without_halo(padded, halo)
        _activate(raw, scale, shift, block, planes)
    done = [finish(last(_as_channels_first(planes[slab]).float())[0])
            for slab in _slabs(planes.shape)]
    return torch.cat(done)


def _padded(shape, channels, halo, dtype, device):
    """Zeros for activations, (X + 2 halo, Y, Z, C)."""
    return torch.zeros(shape[0] + 2 * halo, *shape[1:], channels, dtype=dtype, device=device)


def _without_halo(padded, halo):
    return padded[halo:padded.shape[0] - halo]


def _slabs(shape):
    """Slices along the first axis, of about SLAB_VOXELS."""
    planes = max(1, SLAB_VOXELS // (shape[1] * shape[2]))
    return [slice(start, min(start + planes, shape[0])) for start in range(0, shape[0], planes)]


def _as_channels_first(planes):
    """A view of (x, Y, Z, C) as (1, C, x, Y, Z), which PyTorch knows as channels_last_3d."""
    return planes.permute(3, 0, 1, 2)[None]


def _convolve(block, padded, halo, raw):
    """Writes a layer's convolution into `raw`.

    :param padded: what it takes, (X + 2 halo, Y, Z, C)
    :param raw: (X, Y, Z, C')
    :return: what its instance norm multiplies by and adds, (C') float32 each; None without a norm
    """
    kernel = block.kernel.to(raw.dtype).contiguous(memory_format=torch.channels_last_3d)
    bias = None if block.bias is None else block.bias.to(raw.dtype)
    sums = torch.zeros(2, block.channels, dtype=torch.float64, device=raw.device)
    reach = block.reach
    for slab in _slabs(raw.shape):
        seen = padded[slab.start + halo - reach:slab.stop + halo + reach]
        out = F.conv3d(_as_channels_first(seen), kernel, bias, padding=(0, reach, reach),
                       dilation=block.layer.dilation)
        raw[slab] = out[0].permute(1, 2, 3, 0)
        if block.layer.is_normalized:
            for plane in raw[slab]:
                sums += _sums(plane)
    if not block.layer.is_normalized:
        return None, None
    mean, square = sums / raw[..., 0].numel()
    scale = (square - mean ** 2 + NORM_EPSILON).rsqrt()
    return scale.float(), (-mean * scale).float()


def _sums(plane):
    """Sums of a plane's values and of their squares, by channel: (Y, Z, C) -> (2, C)."""
    values = plane.float().flatten(1)
    by_column = torch.stack([values.sum(0), values.square().sum(0)])
    return by_column.view(2, *plane.shape[1:]).sum(1, dtype=torch.float64)


def _activate(raw, scale, shift, block, target):
    """Writes the norm and activation of a convolution's planes into the target."""
    activate = ACTIVATIONS[block.layer.activation]
    if scale is not None:
        # one row holds the factors of each of its voxels, so that inner loops are long
        scale, shift = (values.repeat(raw.shape[2]) for values in (scale, shift))
    for plane, out in zip(raw, target):
        values = plane.float().flatten(1)
        if scale is not None:
            values = torch.addcmul(shift, values, scale)
        out[:] = activate(values).view(out.shape) if activate else values.view(out.shape)
