"""The Gaussian filter of cubes as matrix products: the part of MS-SSIM that takes the time."""
import numpy as np
import torch


class GaussianFilter:
    """Filters cubes of n voxels a side with reflected borders, in buffers of its own.

    On a CPU, slabs of planes that stay in its cache are filtered along two axes, then the cube
    along the third; and each product is done in bands of rows, as a row of the window's matrix
    touches no more than 2 radius + 1 columns. A GPU takes the cube at once.
    """

    def __init__(self, n, sigma, radius, device, dtype):
        """:param sigma: standard deviation, voxels
        :param radius: where the Gaussian is cut off, voxels
        """
        self.n = n
        self.planes = min(n, max(1, 2 ** 17 // n ** 2)) if is_cpu(device) else n  # of a slab
        window = _window_matrix(n, sigma, radius).to(device, dtype)
        self._outer_bands = _bands(window, radius, min(n, 16) if is_cpu(device) else n)
        self._inner_bands = _bands(window, radius, min(n, 32) if is_cpu(device) else n)
        self.slabs = torch.empty(2, self.planes, n, n, device=device, dtype=dtype)  # free between
        self._cubes = torch.empty(2, n, n, n, device=device, dtype=dtype)           #   two calls

    def slab_slices(self):
        """Slices of the first axis that cut a cube into slabs."""
        return [slice(i, i + self.planes) for i in range(0, self.n, self.planes)]

    def __call__(self, x, y=None, constant=None, out=None):
        """Filters x, or constant + x * y.

        :param x, y: (n, n, n)
        :param constant: tensor of one value
        :param out: (n, n, n); None: a buffer that the next call overwrites
        :return: `out`
        """
        n = self.n
        half_filtered = self._cubes[0]                                    # (n, n, n)
        out = self._cubes[1] if out is None else out
        for planes in self.slab_slices():
            slab = x[planes]                                              # (p, n, n)
            product, filtered = self.slabs[:, :len(slab)]
            if y is not None:
                slab = torch.addcmul(constant, slab, y[planes], out=product)
            for rows, columns, window, _ in self._inner_bands:
                torch.bmm(window.expand(len(slab), -1, -1), slab[:, columns],
                          out=filtered[:, rows])
            lines = filtered.view(-1, n)                                  # (p n, n)
            lines_out = half_filtered[planes].view(-1, n)
            for rows, columns, _, transposed in self._inner_bands:
                torch.mm(lines[:, columns], transposed, out=lines_out[:, rows])
        for rows, columns, window, _ in self._outer_bands:
            torch.mm(window, half_filtered[columns].view(-1, n * n),
                     out=out[rows].view(-1, n * n))
        return out


def is_cpu(device):
    """Whether a device, or the name of one, is a CPU."""
    return torch.device(device).type == "cpu"


def _window_matrix(n, sigma, radius):
    """The Gaussian filter of a line of n voxels as an (n, n) matrix.

    The reflected border (d c b a | a b c d) is folded in.
    """
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    for i in range(n):
        j = (i + offsets) % (2 * n)
        np.add.at(matrix[i], np.minimum(j, 2 * n - 1 - j), weights)
    return torch.from_numpy(matrix)


def _bands(window, radius, height):
    """Bands of rows of a matrix: (rows, columns they touch, that part, its transpose) each."""
    bands = []
    for i in range(0, len(window), height):
        rows = slice(i, i + height)
        columns = slice(max(0, i - radius), min(len(window), i + height + radius))
        part = window[rows, columns]
        bands.append((rows, columns, part.contiguous(), part.T.contiguous()))
    return bands
