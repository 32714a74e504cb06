"""The picture of a sweep: samples of one noise while a covariate changes, side by side."""
import numpy as np

from mri import geometry, mosaic, mosaic_files
from reporting import figures

FILE_NAME = "sweep.png"
MAX_SHOWN = 12              # samples; of more, evenly spaced ones


def draw_sweep(folder, header, name, headings):
    """Draws folder/sweep.png: the center slices of three views of each sample.

    :param folder: samples folder, which holds all samples
    :param header: of its samples.json
    :param name: of the covariate
    :param headings: its values, as text, one per sample
    :return: path of the picture
    """
    shown = np.linspace(0, len(headings) - 1, min(len(headings), MAX_SHOWN)).round().astype(int)
    columns = []
    for i in shown:
        pixels = mosaic_files.read_mosaic(mosaic_files.mosaic_path(folder, f"{i:06d}"), header)
        heading = f"{figures.short_name(name, 14)} {figures.short_name(headings[i], 14)}"
        columns.append((heading, mosaic.untile(pixels, header["size"], header["layout"])))
    path = folder / FILE_NAME
    figures.montage(path, columns, geometry.voxel_sizes(header["affine"]), depths=(0.5,),
                    affine=header["affine"])
    return path
