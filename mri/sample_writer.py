"""Writes samples as mosaic and NIfTI while the next ones are computed."""
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mri import mosaic, mosaic_files, nifti


def nifti_path(output, i):
    """NIfTI of sample i. It is written last: if it exists, the sample is complete."""
    return output / "nifti" / f"{i:06d}.nii.gz"


class SampleWriter:
    """Writes samples in a thread.

    At most `max_waiting` samples wait. An error in the thread ends the main thread, too.
    """

    def __init__(self, output, header, describe, max_waiting):
        """
        :param output: samples folder, a Path
        :param header: of its samples.json
        :param describe: index of a sample -> text for its NIfTI header
        """
        self.output, self.header, self.describe = output, header, describe
        self.max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(1)
        self._jobs = deque()

    def write(self, i, pixels):
        """Writes sample i, a mosaic (side, side, 3) uint8, as PNG and NIfTI."""
        self._jobs.append(self._pool.submit(self._write, i, pixels))
        while len(self._jobs) > self.max_waiting:
            self._jobs.popleft().result()

    def _write(self, i, pixels):
        mosaic_files.write_mosaic(mosaic_files.mosaic_path(self.output, f"{i:06d}"), pixels)
        header = self.header
        volume = mosaic.untile(pixels, header["size"], header["layout"])
        nifti.write_nifti(nifti_path(self.output, i), volume, np.array(header["affine"]),
                          nifti.SYNTHETIC_CODES, self.describe(i))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self._pool:
            while self._jobs:
                self._jobs.popleft().result()
