"""Coverage, false alarms and power of an evaluation's numbers, on the brains of demo/cohort.py.

The tables are in docs/evaluation.md: `pytest -s -m slow tests/test_statistics_of_brains.py` prints
them. One draw takes two disjoint sets of subjects from 200; the synthetic set of a shifted draw
is blurred, as samples are.
"""
from dataclasses import dataclass

import brain_cohorts
import numpy as np
import pytest
import two_sets
from scipy import ndimage, stats

from metrics import inception, intensity, mmd, ms_ssim
from metrics.smoothness import energy_ratio, gradient_energy, through_plane_ratio

SUBJECTS = 200
SEED = 5            # not one of the demo's, on whose kind of brains constants were chosen
DRAWS = 200
CONFIGURATIONS = [(n, each) for n in (8, 16, 32) for each in (1, 2)]

pytestmark = pytest.mark.slow


@dataclass
class Population:
    """First scans of all subjects, then their second ones, then the first ones blurred."""
    products: np.ndarray        # inner products of the voxels
    features: np.ndarray        # stand-in for those of a network
    energy: np.ndarray
    histograms: np.ndarray
    similarity: np.ndarray      # MS-SSIM, of scans and of blurred scans among themselves

    def draw(self, rng, n, each, shifted):
        """Indices of a real and a synthetic set, and the subject of each."""
        subjects = rng.choice(SUBJECTS, 2 * n, replace=False)
        real = np.concatenate([subjects[:n] + k * SUBJECTS for k in range(each)])
        which = 2 if shifted else rng.integers(each, size=n)  # first and second scans differ a bit
        synthetic = subjects[n:] + SUBJECTS * which
        return np.concatenate([real, synthetic]), np.concatenate([real, synthetic]) % SUBJECTS


@pytest.fixture(scope="module")
def population(tmp_path_factory):
    data = brain_cohorts.demo_brains(tmp_path_factory.mktemp("demo"), SUBJECTS, SEED)
    return population_of(brain_cohorts.read_volumes(data))


def population_of(first):
    rng = np.random.default_rng(0)
    second = np.stack([brain_cohorts.second_scan(v, rng) for v in first])
    volumes = np.concatenate([first, second, [brain_cohorts.blurred(v) for v in first]])
    similarity = np.full((len(volumes),) * 2, np.nan)
    scans, blurred = ms_ssim.all_pairs(2 * SUBJECTS), 2 * SUBJECTS + ms_ssim.all_pairs(SUBJECTS)
    pairs = np.concatenate([scans, blurred])
    values = ms_ssim.ms_ssim_pairs(volumes, pairs=pairs)
    similarity[tuple(pairs.T)] = similarity[tuple(pairs[:, ::-1].T)] = values
    centered = first - first.mean(0)
    related = [np.corrcoef(a, second[i].reshape(-1) - first.mean(0).reshape(-1))[0, 1]
               for i, a in enumerate(centered.reshape(SUBJECTS, -1))]
    print(f"\ntwo scans of a subject correlate by {np.mean(related):.2f} about the mean brain")
    return Population(
        mmd.gram(volumes), stand_in_features(volumes),
        np.stack([gradient_energy(v) for v in volumes]),
        np.stack([intensity.intensity_histogram(v) for v in volumes]), similarity)


def stand_in_features(volumes):
    """(N, 48): means of what random filters, rectified, find in the axial middle slice; as many
    scales and orientations as chance gives."""
    filters = np.random.default_rng(0).normal(size=(48, 7, 7))
    filters -= filters.mean((1, 2), keepdims=True)
    slices = volumes[:, :, :, volumes.shape[3] // 2] / 255
    responses = [np.maximum(ndimage.convolve(slices, f[None]), 0).mean((1, 2)) for f in filters]
    features = np.stack(responses, axis=1)
    return (features - features.mean(0)) / features.std(0)


def distances_of(population, chosen, subjects):
    """{name: (distance of two weighted sets, tail of its test)}, as the report computes them."""
    products = population.products[np.ix_(chosen, chosen)]
    gaussian, _ = mmd.gaussian_kernel(products)
    features = population.features[chosen]
    kid = (features @ features.T / features.shape[1] + 1) ** 3
    centered = features - features.mean(0)
    energy = population.energy[chosen]
    histograms = population.histograms[chosen]
    distances = {
        f"{name}": (lambda a, b, kernel=kernel: mmd.mmd_of_kernel(kernel, a, b, True, subjects),
                    "upper")
        for name, kernel in (("MMD, unbiased", products), ("MMD, Gaussian", gaussian),
                             ("KID of stand-in features", kid))}
    distances["MMD, linear"] = (lambda a, b: mmd.mmd_of_kernel(products, a, b, False), "upper")
    distances["FID of stand-in features"] = (
        lambda a, b: inception.frechet(centered @ centered.T, a, b), "upper")
    distances["histogram"] = (lambda a, b: intensity.histogram_distance(histograms, a, b), "upper")
    distances["gradient energy"] = (lambda a, b: energy_ratio(energy, 0, a, b), "both")
    distances["through-plane"] = (lambda a, b: through_plane_ratio(energy, a, b), "both")
    return distances


def p_of_draws(population, n, each, shifted, draws):
    """{name: p of each draw}."""
    rng = np.random.default_rng([n, each, shifted])
    found = {}
    for _ in range(draws):
        chosen, subjects = population.draw(rng, n, each, shifted)
        distances = distances_of(population, chosen, subjects)
        for name, p in two_sets.p_values(distances, subjects[:-n], n, 199, rng).items():
            found.setdefault(name, []).append(p)
    return {name: np.array(p) for name, p in found.items()}


@pytest.mark.parametrize("n, each", CONFIGURATIONS)
def test_p_of_brains(population, n, each):
    """Uniform where the sets are alike; small where the synthetic set is blurred."""
    null = p_of_draws(population, n, each, False, DRAWS)
    shifted = p_of_draws(population, n, each, True, DRAWS // 4)
    for name in null:
        uniform = stats.kstest(null[name], "uniform").pvalue
        print(f"\nN = {n}, {each} scans, {name}: p <= 0.05 in {np.mean(null[name] <= 0.05):.3f}, "
              f"blurred {np.mean(shifted[name] <= 0.05):.2f}; KS p {uniform:.3f}", end="")
        assert uniform > 0.01, name


@pytest.mark.parametrize("n, each", CONFIGURATIONS)
@pytest.mark.parametrize("shifted", [False, True])
def test_coverage_of_brains(population, n, each, shifted):
    """The 95% interval holds what one gets on average with as many subjects."""
    rng = np.random.default_rng([n, each, shifted])
    found = {}
    for trial in range(300):
        chosen, subjects = population.draw(rng, n, each, shifted)
        for name, compute in means_of(population, chosen, subjects).items():
            found.setdefault(name, []).append(
                two_sets.interval_of(compute, subjects, len(chosen) - n, 300, trial))
    for name, intervals in found.items():
        expected = np.mean([value for _, value in intervals])
        covered = np.mean([low <= expected <= high for (low, high), _ in intervals])
        print(f"\nN = {n}, {each} scans, {'blurred' if shifted else 'alike'}, {name}: "
              f"{covered:.3f} hold {expected:.4g}", end="")
        assert covered >= 0.90, name


def means_of(population, chosen, subjects):
    """{name: number of two weighted sets} of those that have an interval."""
    pairs = ms_ssim.all_pairs(len(chosen))
    values = population.similarity[np.ix_(chosen, chosen)][tuple(pairs.T)]
    kept = (subjects[pairs[:, 0]] != subjects[pairs[:, 1]]) & np.isfinite(values)
    pairs, values = pairs[kept], values[kept]
    energy = population.energy[chosen]
    return {"MS-SSIM difference": lambda a, b: (ms_ssim.mean_of_pairs(values, pairs, b)
                                                - ms_ssim.mean_of_pairs(values, pairs, a)),
            "gradient energy": lambda a, b: energy_ratio(energy, 0, a, b),
            "through-plane": lambda a, b: through_plane_ratio(energy, a, b)}
