"""The plain way of each piece of work: as the published repositories do it, or straight from the formula, and slow.

`bench.py` measures against it, and tests take it as an oracle. Nothing else uses it.
"""
import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from diffusion import gaussian_diffusion as diffusion
from diffusion import vae as latents
from metrics import ms_ssim as protocol
from models import modulate
from mri import mosaic

# ------------------------------------------------------------------------------------------------------- the network


def block_forward(block, x, c):
    """A DiT block as written in the paper: every activation kept."""
    shift1, scale1, gate1, shift2, scale2, gate2 = block.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=2)
    if block.gamma1 is not None:
        gate1, gate2 = gate1 * block.gamma1, gate2 * block.gamma2
    x = x + gate1 * block.attn(modulate(block.norm1(x), shift1, scale1))
    return x + gate2 * block.mlp(modulate(block.norm2(x), shift2, scale2))


def forward(model, x, t, y):
    """`models.DiT.forward`, block by block."""
    x = model.x_embedder(x) + model.pos_embed
    c = model.t_embedder(t) + model.y_embedder(y)
    for block in model.blocks:
        x = block_forward(block, x, c)
    shift, scale = model.final_layer.adaLN_modulation(c).unsqueeze(1).chunk(2, dim=2)
    return model.unpatchify(model.final_layer.linear(modulate(model.final_layer.norm_final(x), shift, scale)))


# ----------------------------------------------------------------------------------------------------------- training

class Trainer:
    """The training loop of facebookresearch/DiT with frozen matrices: fp32 (TF32 on a GPU), eager, the VAE in the loop, an EMA
    of every parameter, the loss fetched at every step."""

    def __init__(self, model, vae, trained, lr=5e-4, decay=0.9999):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.model, self.vae, self.decay = model, vae, decay
        self.ema = {k: p.detach().clone() for k, p in model.named_parameters()}
        self.optimizer = torch.optim.AdamW(trained.values(), lr, weight_decay=0)

    def step(self, mosaics, y):
        """:param mosaics: (N, H, W, 3) uint8, :param y: (N,) labels. Returns the loss."""
        with torch.no_grad():
            posterior = self.vae.encode(latents.to_pixels(mosaics, y.device).contiguous()).latent_dist
            x0 = posterior.sample() * self.vae.config.scaling_factor
        t = torch.randint(diffusion.NUM_TIMESTEPS, (len(x0),), device=y.device)
        loss = diffusion.training_losses(lambda *a: forward(self.model, *a), x0, t, y, torch.randn_like(x0))["loss"].mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for k, p in self.model.named_parameters():
                self.ema[k].mul_(self.decay).add_(p, alpha=1 - self.decay)
        return loss.item()


# ------------------------------------------------------------------------------------------------------ preprocessing

def preprocess(path, out, size=128):
    """One scan -> its mosaic in layout rgb, by nibabel, scipy.ndimage.zoom and PIL as they come. Returns the mosaic."""
    scan = nib.as_closest_canonical(nib.load(path))
    array = scan.get_fdata()
    cube = ndimage.zoom(array, size / np.array(array.shape), order=1, mode="nearest", grid_mode=True)
    lo, hi = np.percentile(array, (0, 99.9))
    cube = np.rint(np.clip((cube - lo) / (hi - lo), 0, 1) * 255).astype(np.uint8)
    grid = mosaic.grid_size(size, "rgb")
    sheet = np.zeros((grid * size, grid * size, 3), np.uint8)
    for k in range(size):
        row, column = divmod(k // 3, grid)
        sheet[row * size:(row + 1) * size, column * size:(column + 1) * size, k % 3] = np.rot90(cube[:, :, k])
    Image.fromarray(sheet).save(out)
    return sheet


# ------------------------------------------------------------------------------------------------------------ metrics

def ms_ssim(x, y, length=1.0):
    """MS-SSIM of one pair, protocol kwon2019, straight from its formula with SciPy's Gaussian filter.

    :param x, y: (D, D, D) float32 in [-1, 1]
    """
    def smooth(v):
        return ndimage.gaussian_filter(v, protocol.SIGMA, mode="reflect", radius=protocol.RADIUS)

    c1, c2, cs = (protocol.K1 * length) ** 2, (protocol.K2 * length) ** 2, []
    for level in range(len(protocol.LEVEL_WEIGHTS)):
        mx, my = smooth(x), smooth(y)
        vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
        structure = (2 * cov + c2) / (vx + vy + c2)
        cs.append(structure.mean(dtype=np.float64))
        ssim = ((2 * mx * my + c1) / (mx * mx + my * my + c1) * structure).mean(dtype=np.float64)
        if level < len(protocol.LEVEL_WEIGHTS) - 1:
            n = len(x) // 2 * 2
            x, y = (v[:n, :n, :n].reshape(n // 2, 2, n // 2, 2, n // 2, 2).mean((1, 3, 5)) for v in (x, y))
    return float(np.prod([max(c, 0) ** w * max(ssim, 0) ** protocol.LEVEL_WEIGHTS[-1] for c, w in zip(cs[:-1], protocol.LEVEL_WEIGHTS)]))
