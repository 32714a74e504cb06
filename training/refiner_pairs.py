"""Pairs to train the refiner on: what the VAE or the model made of a real volume, and the volume.

A *round trip* went through the VAE: it shows what decoding does to real slices. A *resampled*
volume was also noised part of the way and sampled again from there: it shows the same anatomy with
the incoherence between tiles that the model's own samples have.
"""
from dataclasses import dataclass

import numpy as np
import torch

from diffusion import samplers
from diffusion import vae as vae_module
from mri import mosaic
from training.conditions import encode_entries, recorded_conditions, with_covariates
from utils.errors import UserError
from utils.precision import autocast
from utils.progress import counter
from utils.seeding import seeded_generator

BATCH_SIZE = 8      # latents that are sampled at once


@dataclass(frozen=True)
class Pairs:
    """Inputs of the refiner, and what it should make of them."""
    inputs: np.ndarray      # (P, D, D, D) uint8
    targets: np.ndarray     # (N, D, D, D) uint8, real volumes
    target_of: np.ndarray   # (P,) index of each input's target
    timesteps: np.ndarray   # (P,) that each input was noised to; 0: a round trip

    def kind(self, resampled):
        """Indices of the round trips, or of the resampled ones."""
        return np.flatnonzero((self.timesteps > 0) == resampled)


def check_data(metadata, checkpoint, header, entries, folder):
    """Checks that a data folder's volumes can be given to the model of a checkpoint.

    :param metadata: of the checkpoint
    :param checkpoint, folder: their paths, for errors
    :param header, entries: of the manifest
    :return: Conditions that the model takes, or None
    :raises UserError: they are of another size, class or kind
    """
    recorded = metadata["header"]
    if any(recorded[key] != header[key] for key in ("size", "layout")):
        raise UserError(f"--ckpt {checkpoint}: was trained on {recorded['layout']} mosaics of "
                        f"{recorded['size']}^3, {folder} holds {header['layout']} mosaics of "
                        f"{header['size']}^3")
    classes = metadata["config"]["num_classes"]
    if max(entry["class"] for entry in entries) >= classes:
        raise UserError(f"--data-path {folder}: has more classes than the {classes} of "
                        f"{checkpoint}; name the data folder it was trained on")
    conditions = recorded_conditions(metadata, checkpoint)
    known = {column["name"] for column in header.get("covariates", ())}
    lacking = [column.name for column in (conditions.columns if conditions else ())
               if column.name not in known]
    if lacking:
        raise UserError(f"--data-path {folder}: lacks the covariates {', '.join(lacking)} that "
                        f"{checkpoint} takes; preprocess again with --labels and --covariates")
    encode_entries(conditions, entries, folder)     # names values that the model does not know
    return conditions


def untile_all(mosaics, header):
    """(N, side, side, 3) -> (N, D, D, D)."""
    return np.stack([mosaic.untile(one, header["size"], header["layout"]) for one in mosaics])


def round_trips(vae, mosaics, header):
    """Pairs of real volumes and the same after the VAE.

    :param mosaics: (N, side, side, 3) uint8
    :param header: of their manifest
    :return: Pairs; the moments of their latents, (N, 2C, h, w)
    """
    inputs, moments = [], []
    with counter("round trips", len(mosaics)) as update:
        for one in mosaics:
            moments.append(vae_module.encode_moments(vae, one[None]))
            mean = moments[-1].chunk(2, 1)[0]
            latent = vae_module.draw_latents(vae.config, moments[-1], torch.zeros_like(mean))
            inputs.append(vae_module.decode(vae, latent)[0])
            update()
    targets = untile_all(mosaics, header)
    pairs = Pairs(untile_all(inputs, header), targets, np.arange(len(mosaics)),
                  np.zeros(len(mosaics), np.int64))
    return pairs, torch.cat(moments)


def steps_between(lowest, highest, num_steps):
    """How many of the sampler's steps to take so that it starts at a timestep in a range.

    :param lowest, highest: timesteps, 0…999
    :return: array of numbers as `samplers.resample` takes them; may be empty
    """
    timesteps = samplers.respaced_timesteps(num_steps)
    return 1 + np.flatnonzero((lowest <= timesteps) & (timesteps <= highest))


def resampled(model, vae, moments, labels, count, steps, *, header, num_steps, seed, precision,
              covariates=None, foreground=None):
    """Real volumes, noised part of the way and sampled again by the model.

    Input i draws its volume, its step and its noise from (seed, i).

    :param model: DiT on the VAE's device
    :param moments: (N, 2C, h, w) of the real volumes
    :param labels: (N,) their classes
    :param count: number of inputs, P
    :param steps: see `steps_between`
    :param num_steps: of the whole sampler
    :param precision: compute dtype of the model
    :param covariates: (N, K) of the real volumes, see `models.ConditionEmbedder`; None: the model
        takes none
    :param foreground: Foreground, the tokens that the model computes; None: all
    :return: inputs (P, D, D, D) uint8, index of each one's volume (P,), timesteps (P,)
    """
    generators = [seeded_generator(seed, i) for i in range(count)]
    volume_of = np.array([_draw_index(len(moments), g) for g in generators])
    step_of = np.array([steps[_draw_index(len(steps), g)] for g in generators])
    inputs = np.empty((count, *[header["size"]] * 3), np.uint8)
    timesteps = np.empty(count, np.int64)
    with counter("resampled volumes", count) as update:
        for step in steps:
            of_step = np.flatnonzero(step_of == step)
            for batch in np.split(of_step, range(BATCH_SIZE, len(of_step), BATCH_SIZE)):
                if len(batch) == 0:
                    continue
                volumes = volume_of[batch]
                asked = None if covariates is None else covariates[volumes]
                latents, timesteps[batch] = _resample_batch(
                    with_covariates(model, asked, vae.device), vae, moments[volumes],
                    labels[volumes], step, [generators[i] for i in batch], num_steps, precision)
                if foreground:
                    latents = foreground.fill(latents, model.kept_latents)
                inputs[batch] = untile_all(vae_module.decode(vae, latents), header)
                update(len(batch))
    return inputs, volume_of, timesteps


def _draw_index(count, generator):
    return int(torch.randint(count, (), generator=generator))


def _resample_batch(model, vae, moments, labels, step, generators, num_steps, precision):
    shape = moments.chunk(2, 1)[0].shape[1:]
    noise = torch.stack([torch.randn(shape, generator=g) for g in generators])
    latents = vae_module.draw_latents(vae.config, moments, noise).to(vae.device)
    with autocast(vae.device, precision):
        return samplers.resample(model, latents, int(step), torch.as_tensor(labels), generators,
                                 num_steps=num_steps)


def joined(pairs, inputs, target_of, timesteps):
    """Pairs with further inputs of the same targets."""
    return Pairs(np.concatenate([pairs.inputs, inputs]), pairs.targets,
                 np.concatenate([pairs.target_of, target_of]),
                 np.concatenate([pairs.timesteps, timesteps]))


# ------------------------------------------------------------------------------------------ batches

@dataclass(frozen=True)
class Batch:
    """Crops of pairs, as tensors on the CPU."""
    inputs: torch.Tensor        # (B, c, c, c) uint8
    targets: torch.Tensor       # (B, c, c, c) uint8
    first_slices: torch.Tensor  # (B,) index of the first slice of each crop
    timesteps: torch.Tensor     # (B,)


def draw_batch(pairs, size, crop, generator):
    """Random crops, half of them of round trips, half mirrored left to right.

    :param size: number of crops
    :param crop: their side, voxels
    :return: Batch
    """
    kinds = [pairs.kind(resampled=False), pairs.kind(resampled=True)]
    kinds = [kind for kind in kinds if len(kind)]
    rows = []
    for b in range(size):
        kind = kinds[b % len(kinds)]
        i = kind[_draw_index(len(kind), generator)]
        corner = torch.randint(pairs.inputs.shape[1] - crop + 1, (3,), generator=generator)
        box = tuple(slice(start, start + crop) for start in corner.tolist())
        mirror = -1 if _draw_index(2, generator) else 1
        crops = [volume[box][::mirror] for volume in (pairs.inputs[i],
                                                      pairs.targets[pairs.target_of[i]])]
        rows.append((*crops, int(corner[2]), int(pairs.timesteps[i])))
    inputs, targets, first_slices, timesteps = zip(*rows)
    return Batch(torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets)),
                 torch.tensor(first_slices), torch.tensor(timesteps))
