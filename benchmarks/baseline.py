"""The baseline of each piece of work: as published repositories do it, or by the formula.

Slow and simple. `bench.py` measures against it, and tests compare with it; nothing else uses it.
"""
import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from diffusion import gaussian_diffusion, vae
from metrics.ms_ssim import K1, K2, LEVEL_WEIGHTS, RADIUS, SIGMA
from models import modulate
from mri import mosaic

# ------------------------------------------------------------------------------------ the network


def block_forward(block, x, c, mask=None):
    """A DiT block as written in the paper: every activation is kept.

    :param block: models.DiTBlock
    :param x: (N, T, width) tokens
    :param c: (N, width) conditioning
    :param mask: (T,) bool, the tokens that are attended to; None: all
    :return: (N, T, width)
    """
    modulation = block.adaLN_modulation(c).unsqueeze(1)                     # (N, 1, 6 * width)
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=2)
    if block.gamma1 is not None:
        gate1 = gate1 * block.gamma1
        gate2 = gate2 * block.gamma2
    if mask is not None:
        mask = mask.expand(len(mask), -1)                                   # (T, T)
    x = x + gate1 * block.attn(modulate(block.norm1(x), shift1, scale1), attn_mask=mask)
    return x + gate2 * block.mlp(modulate(block.norm2(x), shift2, scale2))


def forward(model, x, t, y):
    """`models.DiT.forward` with the blocks of `block_forward`; same arguments, same result.

    If the model keeps a part of the tokens, all are computed, but none attends to the others.
    """
    mask = None
    if model.kept_tokens is not None:
        mask = torch.zeros(model.grid ** 2, dtype=torch.bool, device=x.device)
        mask[model.kept_tokens] = True
    x = model.x_embedder(x) + model.pos_embed                               # (N, T, width)
    c = model.t_embedder(t) + model.y_embedder(y)                           # (N, width)
    for block in model.blocks:
        x = block_forward(block, x, c, mask)
    final = model.final_layer
    shift, scale = final.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
    out = final.linear(modulate(final.norm_final(x), shift, scale))         # (N, T, p * p * 2C)
    if mask is not None:
        out = out * mask[:, None]
    return model.unpatchify(out)


def allow_tf32():
    """TF32 products on a GPU, as the published training and sampling scripts ask for."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True


# --------------------------------------------------------------------------------------- training

class Trainer:
    """The training loop of facebookresearch/DiT, with frozen matrices.

    fp32 (TF32 on a GPU), not compiled; the VAE encodes in every step, an EMA is kept of every
    parameter, and every step fetches its loss from the device.

    :param model: models.DiT
    :param autoencoder: diffusers.AutoencoderKL
    :param trained: {name: parameter} to optimize
    :param lr: learning rate of AdamW
    :param decay: decay of the EMA
    """

    def __init__(self, model, autoencoder, trained, lr=5e-4, decay=0.9999):
        allow_tf32()
        self.model = model
        self.autoencoder = autoencoder
        self.decay = decay
        self.ema = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(trained.values(), lr, weight_decay=0)

    def step(self, mosaics, y):
        """One training step.

        :param mosaics: (N, H, W, 3) uint8
        :param y: (N,) class labels, on the device
        :return: the loss
        """
        x0 = self._encode(mosaics, y.device)                                # (N, C, H / 8, W / 8)
        t = torch.randint(gaussian_diffusion.NUM_TIMESTEPS, (len(x0),), device=y.device)
        noise = torch.randn_like(x0)
        losses = gaussian_diffusion.training_losses(self._network, x0, t, y, noise)
        loss = losses["loss"].mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._update_ema()
        return loss.item()

    @torch.no_grad()
    def _encode(self, mosaics, device):
        pixels = vae.to_pixels(mosaics, device).contiguous()                # (N, 3, H, W)
        posterior = self.autoencoder.encode(pixels).latent_dist
        return posterior.sample() * self.autoencoder.config.scaling_factor

    def _network(self, x, t, y):
        return forward(self.model, x, t, y)

    @torch.no_grad()
    def _update_ema(self):
        for name, p in self.model.named_parameters():
            self.ema[name].mul_(self.decay).add_(p, alpha=1 - self.decay)


# ---------------------------------------------------------------------------------- preprocessing

def preprocess(path, out, size=128):
    """Writes the mosaic of one scan, layout rgb, by nibabel, scipy.ndimage.zoom and PIL.

    :param path: NIfTI file of one volume
    :param out: PNG file to write
    :param size: voxels along a side of the cube
    :return: (G * size, G * size, 3) uint8 mosaic
    """
    scan = nib.as_closest_canonical(nib.load(path))
    array = scan.get_fdata()
    zoom = size / np.array(array.shape)
    cube = ndimage.zoom(array, zoom, order=1, mode="nearest", grid_mode=True)
    lo, hi = np.percentile(array, (0, 99.9))
    cube = np.rint(np.clip((cube - lo) / (hi - lo), 0, 1) * 255).astype(np.uint8)
    grid = mosaic.grid_size(size, "rgb")
    sheet = np.zeros((grid * size, grid * size, 3), np.uint8)
    for k in range(size):
        row, column = divmod(k // 3, grid)
        rows = slice(row * size, (row + 1) * size)
        columns = slice(column * size, (column + 1) * size)
        sheet[rows, columns, k % 3] = np.rot90(cube[:, :, k])
    Image.fromarray(sheet).save(out)
    return sheet


# ---------------------------------------------------------------------------------------- metrics

def ms_ssim(x, y, length=1.0):
    """MS-SSIM of one pair, protocol kwon2019, straight from its formula with SciPy's filter.

    See metrics.ms_ssim for the protocol and its sources.

    :param x: (D, D, D) float32 in [-1, 1]
    :param y: as `x`
    :param length: dynamic range L of the constants (K L)^2
    """
    contrasts = []
    coarsest = len(LEVEL_WEIGHTS) - 1
    for level in range(len(LEVEL_WEIGHTS)):
        ssim, contrast = _ssim(x, y, length)
        contrasts.append(contrast)
        if level < coarsest:
            x = _halve(x)
            y = _halve(y)
    last = max(ssim, 0) ** LEVEL_WEIGHTS[-1]
    factors = [max(contrast, 0) ** weight * last
               for contrast, weight in zip(contrasts[:-1], LEVEL_WEIGHTS)]
    return float(np.prod(factors))


def _ssim(x, y, length):
    """Mean SSIM of one level, and the mean of its contrast-structure term."""
    c1 = (K1 * length) ** 2
    c2 = (K2 * length) ** 2
    mean_x = _smooth(x)
    mean_y = _smooth(y)
    variance_x = _smooth(x * x) - mean_x * mean_x
    variance_y = _smooth(y * y) - mean_y * mean_y
    covariance = _smooth(x * y) - mean_x * mean_y
    contrast = (2 * covariance + c2) / (variance_x + variance_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x * mean_x + mean_y * mean_y + c1)
    return (luminance * contrast).mean(dtype=np.float64), contrast.mean(dtype=np.float64)


def _smooth(volume):
    return ndimage.gaussian_filter(volume, SIGMA, mode="reflect", radius=RADIUS)


def _halve(volume):
    """Means of 2 x 2 x 2 voxels; an odd last plane is left out."""
    n = len(volume) // 2
    even = volume[:2 * n, :2 * n, :2 * n]
    return even.reshape(n, 2, n, 2, n, 2).mean((1, 3, 5))
