"""Quality and copying of samples of each checkpoint of a run: does it improve, or memorize?"""
import dataclasses
import subprocess
import sys

import numpy as np

from metrics import copy_search, evaluation, registry
from metrics.statistic import Pool
from utils.errors import UserError
from utils.escaping import printable
from utils.files import SCRIPTS_DIR
from utils.skipped import lines_of_skipped

SAMPLES_FOLDER = "samples"    # in the output folder, one samples folder per checkpoint
METRICS = ("ms-ssim", "mmd", "coverage", "memorization")
COLUMNS = {
    # column of the table: what it is
    "step": "training step of the checkpoint",
    "samples": "volumes that were sampled from it",
    "mmd": "MMD on voxels, Gaussian kernel, unbiased; 0: as real volumes",
    "ms_ssim_difference": "MS-SSIM within the samples − within the real set; above 0: less diverse",
    "coverage": "share of real volumes with a sample in their neighborhood, of random 3D features",
    "copies": "samples flagged as copies of one training volume",
    "copied_share": "the same as a share",
    "ratio": "distance to the nearest training volume over that to the second nearest subject, "
             "median of the samples; near 0: copies",
    "ratio_of_held_out": "the same of held-out real volumes",
    "feature_ratio": "the same ratio in features of a random 3D network, median of the samples",
    "feature_ratio_of_held_out": "the same of held-out real volumes",
    "nearest_correlation": "correlation with the most correlated training volume, mean",
    "nearest_correlation_of_held_out": "the same of held-out real volumes",
    "held_out_loss": "held-out loss at the last logged step up to this one",
}


def sample(checkpoint, folder, num_samples, flags):
    """Samples a checkpoint by sample.py, in a process of its own; what is there already stays.

    :param checkpoint: file
    :param folder: samples folder
    :param flags: {flag: value} of sample.py; None: its default
    :raises UserError: with the line in which sample.py says what is wrong
    """
    command = [sys.executable, str(SCRIPTS_DIR / "sample.py"), "--ckpt", str(checkpoint),
               "--output", str(folder), "--num-samples", str(num_samples)]
    for flag, value in flags.items():
        command += [] if value is None else [flag, str(value)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        try:
            reason = _pass_on(process.stderr)
        except BaseException:       # such as Ctrl-C
            process.kill()
            raise
    if process.returncode:
        reason = reason or f"exit code {process.returncode}"
        raise UserError(f"{checkpoint}: cannot be sampled; {reason}")


def _pass_on(lines):
    """Writes lines of sample.py, such as its progress, to stderr.

    :return: its error, or its last line; "" if there is none
    """
    last = ""
    for line in lines:
        before, is_error, error = line.partition("error: ")
        if is_error and before.startswith("sample.py"):
            return error.strip()
        sys.stderr.write(line)
        sys.stderr.flush()
        last = line.strip() or last
    return last.split("error: ", 1)[-1]


class PoolOfRun:
    """The pool of a run's checkpoints: real and training volumes stay, samples are replaced."""

    def __init__(self, real, train, memory_gb, folder):
        """
        :param real, train: VolumeSet
        :param memory_gb, folder: as `statistic.Pool.load` takes them
        """
        self.real, self.train = real, train
        self.memory = memory_gb, folder
        self._pool = None
        self._said = set()

    def with_samples(self, synthetic):
        """A statistic.Pool, loaded; prints what makes its numbers misleading, each line once.

        The next call changes it.

        :param synthetic: VolumeSet
        """
        if self._pool is None:
            self._pool = Pool(self.real, synthetic, self.train)
            self._pool.load(*self.memory)
        else:
            self._pool.replace_synthetic(synthetic, *self.memory)
        for line in evaluation.warnings_of_sets(self._pool):
            if line not in self._said:
                print(f"warning: {printable(line)}", flush=True)
            self._said.add(line)
        return self._pool


def numbers(step, pool, options, losses):
    """A row of COLUMNS; None where a number cannot be computed.

    :param pool: statistic.Pool, loaded: held-out real volumes, samples, training volumes
    :param options: MetricOptions
    :param losses: {step: held-out loss}
    """
    options = dataclasses.replace(options, names=METRICS)
    metrics, skipped = registry.checked(METRICS, pool, options)
    found = evaluation.measure(metrics, pool, options, replicates=0, permutations=0)
    for line in lines_of_skipped({**skipped, **found.skipped}, "not computed"):
        print(printable(f"step {step}, {line}"), flush=True)

    def value(key):
        return found.entries.get(key, {}).get("value")

    copies = found.entries["copies"]
    nearest = found.entries["nearest_correlation"]
    earlier = [logged for logged in losses if logged <= step]
    return {
        "step": step, "samples": len(pool.sets["synthetic"]), "mmd": value("mmd_rbf"),
        "ms_ssim_difference": value("ms_ssim_difference"), "coverage": value("coverage_random"),
        "copies": len(copies["flagged"]), "copied_share": copies["value"],
        "ratio": _median(copies["ratios"]["synthetic"]),
        "ratio_of_held_out": _median(_of_held_out(copies, "ratios")),
        "feature_ratio": _median(copies["feature_ratios"]["synthetic"]),
        "feature_ratio_of_held_out": _median(_of_held_out(copies, "feature_ratios")),
        "nearest_correlation": nearest["value"],
        "nearest_correlation_of_held_out": float(np.mean(nearest["of_volumes"]["real"])),
        "held_out_loss": losses[max(earlier)] if earlier else None}


def _of_held_out(copies, key):
    """Ratios of the real volumes that are not themselves in the training set."""
    are_copies = copy_search.is_real_copy(copies["ratios"]["real"])
    return [ratio for ratio, is_copy in zip(copies[key]["real"], are_copies) if not is_copy]


def _median(ratios):
    """None where there is no ratio, or one is not known."""
    return float(np.median(ratios)) if ratios and None not in ratios else None
