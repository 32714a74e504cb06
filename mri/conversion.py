"""One scan -> mosaic on disk, and a cube back onto its scan's grid; many scans in processes."""
import contextlib
import ctypes
import functools
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from mri import (
    contact_sheet,
    geometry,
    intensity,
    manifest,
    meshnet,
    mosaic,
    mosaic_files,
    nifti,
    preparation,
    quality_control,
    recipes,
    registration,
    scan_formats,
    scan_volume,
    scans,
    skull_strip,
    template,
)
from utils import workers
from utils.errors import UserError
from utils.escaping import printable
from utils.files import write_bytes, write_text
from utils.progress import progress
from utils.stopwatch import Stopwatch

M_TRIM_THRESHOLD = -1           # of <malloc.h>
M_MMAP_MAX = -4
KEPT_HEAP_BYTES = 2 ** 28       # that a worker keeps for the next scan


@dataclass(frozen=True)
class Settings:
    """How scans become mosaics; the flags of preprocess.py with these names."""
    size: int                     # side of the cube, voxels
    layout: str                   # of the mosaic
    fit: str                      # of the field of view into the cube
    window: tuple                 # two percentiles, 0…100
    volume: int | None = None     # of files that have several
    affine: np.ndarray | None = None  # (4, 4), mm; for files without one
    affine_source: str | None = None  # what --affine says, for the manifest
    mask: str | None = None       # pattern of the masks' paths
    n4: bool = False
    crop_to_brain: bool = False
    crop_margin: float = 0.0      # mm
    orientation: str | None = None  # of the axes of Analyze 7.5 files
    nan_to_zero: bool = False
    meshnet: Path | None = None   # folder of the network for --skull-strip
    space: str | None = None      # to register to, of registration.SPACES
    template: str | None = None   # path, or None for the space's own
    field_of_view: tuple | None = None  # in that space, mm
    recipe: str | None = None     # that these settings are of, for the manifest
    series: str | None = None     # of DICOM, that were converted, for the manifest

    @property
    def subfolders(self):
        """Folders that files of each scan are written into."""
        return ("mosaics", contact_sheet.VIEWS_FOLDER, *(("bias",) if self.n4 else ()),
                *(("masks",) if self.meshnet else ()))

    def template_regions(self):
        """See `template.regions`; () where scans are not registered."""
        if not self.space:
            return ()
        brain = template.load_template(self.template)
        return template.regions(brain, self.field_of_view, self.size, self.fit)

    def describe(self):
        """Lines for a person: what a recipe stands for, and what registered volumes show."""
        lines = []
        if self.recipe:
            lines.append(f"--recipe {self.recipe}: {recipes.expand(self.recipe)}")
        if self.space:
            brain = template.load_template(self.template)
            lines.append(template.describe(brain, self.field_of_view))
        return lines


@dataclass(frozen=True)
class PreparedScan:
    """A scan whose mosaic is on disk."""
    entry: dict                   # of the manifest, without class and split
    summary: quality_control.ScanSummary
    seconds: dict = field(default_factory=dict)   # {stage: time that it took}


@dataclass(frozen=True)
class SkippedScan:
    """A scan that could not be used, or a file that is no scan."""
    reason: str                   # names the file, and what to do
    is_scan: bool = True


def prepare_scan(scan, folder, settings, threads=1):
    """Converts a scan, and writes its mosaic into a folder; if asked for, bias field and mask, too.

    What is undone again by `restore`.

    :param scan: Scan
    :param folder: with the subfolders of the settings
    :param settings: Settings
    :param threads: of the skull strip
    :return: PreparedScan or SkippedScan
    """
    watch = Stopwatch()
    try:
        with watch.stage("read"):
            source = scan_formats.read_scan(scan.path, settings.volume, settings.affine,
                                            settings.orientation, settings.nan_to_zero)
        if scan_volume.has_few_values(source.array):
            return SkippedScan(
                f"{scan.lasting_path}: not a scan: it holds {len(np.unique(source.array))} values "
                "only, as masks and label maps do", is_scan=False)
        ras, affine = geometry.to_ras(source.array, source.affine)
        masked = quality_control.is_masked(ras)
        entry = _source_entry(scan, source, settings.volume)
        ras, affine, mask = _prepare(ras, affine, scan, entry, folder, settings, threads, watch)
        if settings.space:
            with watch.stage("register"):
                _register(ras, affine, mask, entry, settings)
        with watch.stage("resample"):
            cube = _cube_of(ras, affine, entry, settings)
    except UserError as e:
        message = str(e).replace(str(scan.path), str(scan.lasting_path))
        named = str(scan.lasting_path) in message
        return SkippedScan(message if named else f"{scan.lasting_path}: {message}")
    except ValueError as e:
        return SkippedScan(f"{scan.lasting_path}: {e}; widen --window, or take it out")
    with watch.stage("write"):
        pixels = mosaic.tile(cube, settings.layout)
        mosaic_files.write_mosaic(mosaic_files.mosaic_path(folder, scan.id), pixels)
        if scan.sidecar:
            _write_sidecar(scan.sidecar, manifest.sidecar_path(folder, scan.id))
        cube_affine = geometry.cube_affine(*preparation.prepared_grid(entry), settings.size,
                                           settings.fit)
        contact_sheet.write_views(contact_sheet.view_path(folder, scan.id), cube,
                                  geometry.voxel_sizes(cube_affine), settings.template_regions())
        summary = quality_control.summarize(cube, masked, quality_control.digest_of(pixels))
    return PreparedScan(entry, summary, watch.seconds)


def restore(cube, entry, fit, bias=None):
    """Puts a cube back onto its scan's grid, axis order and intensities; undoes `prepare_scan`.

    :param cube: (D, D, D) uint8, RAS
    :param entry: of the manifest
    :param fit: of the manifest's header
    :param bias: logarithm of the bias field that was removed
    :return: (X, Y, Z) float32
    """
    affine = np.array(entry["affine"], float)
    ras = intensity.from_uint8(cube, entry["window"])
    grid = preparation.prepared_grid(entry)
    if "registration" in entry:
        shape, scan_grid = geometry.ras_grid(entry["shape"], affine)
        ras = geometry.from_grid(ras, geometry.cube_affine(*grid, cube.shape[0], fit), shape,
                                 np.array(entry["registration"]["matrix"]) @ scan_grid,
                                 entry["outside"])
    else:
        ras = geometry.from_cube(ras, *grid, fit)
    if entry.get("crop"):
        shape, _ = geometry.ras_grid(entry["shape"], affine)
        outside = entry.get("outside", entry["window"][0])
        ras = preparation.uncrop(ras, entry["crop"], shape, outside)
    if bias is not None:
        ras = preparation.multiply_bias(ras, bias)
    return geometry.from_ras(ras, affine)


def _source_entry(scan, source, volume):
    """What the manifest says of a scan as it was."""
    entry = {"id": scan.id, "subject": scan.subject,
             "source": printable(scans.real_path(scan.lasting_path)),
             "shape": list(source.array.shape), "affine": source.affine.tolist(), "window": None}
    if scan.name is not None:
        entry["name"] = scan.name
    if source.volumes > 1:
        entry["volume"] = volume
    if source.codes != (1, 1):
        entry["codes"] = list(source.codes)
    if source.warnings:
        entry["warnings"] = list(source.warnings)
    return entry


def _prepare(ras, affine, scan, entry, folder, settings, threads, watch):
    """Bias correction, mask or skull strip, and crop, as asked for; recorded in the entry.

    :return: the prepared array, its affine, and the brain mask, or None
    """
    whole, mask = ras, None
    path = preparation.find_mask(settings.mask, scan)
    if path is not None:
        mask = preparation.read_mask(path, ras.shape, affine)
        entry["mask"] = printable(scans.real_path(path))
    elif settings.meshnet:
        mask = skull_strip.mask_of_stripped(ras, affine)
        if mask is not None:
            entry["warnings"] = [*entry.get("warnings", ()), skull_strip.STRIPPED_WARNING]
    if settings.n4:
        with watch.stage("N4"):
            ras = _correct_bias(ras, affine, mask, scan, entry, folder)
    if settings.meshnet and path is None:
        with watch.stage("skull strip"):
            if mask is None:
                network = network_in(settings.meshnet)
                mask = skull_strip.brain_mask(ras, affine, network, threads)
            _write_mask(mask, affine, scan, entry, folder)
    if settings.space and mask is None:
        mask = registration.brain_mask(ras)
    if mask is not None:
        entry["brain_ml"] = round(skull_strip.volume_ml(mask, affine), 1)
        _write_outlined(whole, affine, mask, manifest.outline_path(folder, scan.id))
        ras = preparation.apply_mask(ras, mask)
    if settings.crop_to_brain:
        entry["crop"] = preparation.brain_box(ras, geometry.voxel_sizes(affine),
                                              settings.crop_margin, mask)
        entry["outside"] = preparation.border(ras)[0]
        ras = preparation.crop(ras, entry["crop"])
        affine = preparation.prepared_grid(entry)[1]
    return ras, affine, mask


def _write_outlined(array, affine, mask, path):
    """Writes a picture of a scan with the outline of its brain mask."""
    picture = contact_sheet.outlined(array, geometry.voxel_sizes(affine), mask)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, buffer.getvalue())


def _write_sidecar(sidecar, path):
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(sidecar, indent=1) + "\n")


def _correct_bias(ras, affine, mask, scan, entry, folder):
    """The array without its bias field, which is written and recorded in the entry."""
    bias, shift = preparation.bias_field(ras, geometry.voxel_sizes(affine), mask, threads=1)
    entry["n4"] = True
    if shift:
        # the field was estimated on shifted intensities; the scan's own ones are divided by it
        entry["n4_shift"] = shift
    nifti.write_nifti(manifest.bias_path(folder, scan.id), bias,
                      geometry.grid_over(ras.shape, affine, bias.shape))
    return preparation.divide_bias(ras, bias)


def _write_mask(mask, affine, scan, entry, folder):
    """Writes the mask of the skull strip on the scan's own grid; recorded in the entry."""
    volume = skull_strip.volume_ml(mask, affine)
    entry["skull_strip"] = True
    warning = skull_strip.volume_warning(volume)
    if warning:
        entry["warnings"] = [*entry.get("warnings", ()), warning]
    own_affine = np.array(entry["affine"])
    own_mask = geometry.from_ras(mask, own_affine).astype(np.uint8) * 255    # that readers see as 1
    nifti.write_nifti(manifest.mask_path(folder, scan.id), own_mask, own_affine,
                      entry.get("codes", (1, 1)), "brain mask")


def _register(ras, affine, mask, entry, settings):
    """Finds where a brain lies in the template's space, and records it in the entry."""
    brain = template.load_template(settings.template)
    found = registration.register(ras, affine, mask, brain)
    shape, grid = template.field_of_view(brain, settings.field_of_view)
    entry["outside"] = preparation.border(ras)[0]
    entry["registration"] = {
        "matrix": found.matrix.tolist(), "overlap": round(found.overlap, 4),
        "scaling": [round(factor, 4) for factor in found.scaling],
        "shape": list(shape), "affine": grid.tolist(), "code": brain.code}


def _cube_of(ras, affine, entry, settings):
    """The cube of a prepared scan, uint8; its window is recorded in the entry.

    A registered scan is resampled once, from its own grid, and its window is that of the field of
    view.
    """
    size, fit = settings.size, settings.fit
    if settings.space:
        matrix = np.array(entry["registration"]["matrix"])
        grid = geometry.cube_affine(*preparation.prepared_grid(entry), size, fit)
        cube = geometry.to_grid(ras, matrix @ affine, (size,) * 3, grid, entry["outside"])
        window = intensity.intensity_window(cube, settings.window)
    else:
        window = intensity.intensity_window(ras, settings.window)
        cube = geometry.to_cube(ras, affine, size, fit, outside=window[0])
    entry["window"] = list(window)
    return intensity.to_uint8(cube, window)


@functools.cache
def network_in(folder):
    """The network of a folder, read once in a process; see `meshnet.load`."""
    return meshnet.load(folder)


# -------------------------------------------------------------------------------------- processes

def prepare_scans(cohort, folder, settings, processes):
    """Runs `prepare_scan` over scans, with progress.

    :param cohort: list of Scan
    :param processes: number of processes, of one thread each but for the skull strip of few scans
    :return: list of PreparedScan and SkippedScan in the order of the scans
    :raises UserError: a process was killed
    """
    threads = max(1, processes // max(1, len(cohort)))   # where there are more cores than scans
    prepare = functools.partial(prepare_scan, folder=folder, settings=settings, threads=threads)
    if processes == 1:
        _start_worker()
        return [prepare(scan) for scan in progress(cohort, "scans")]
    try:
        return workers.map_in_processes(prepare, cohort, processes, "scans", _start_worker)
    except workers.WorkerDied:
        raise UserError(f"--workers {processes}: a worker was killed, likely out of memory; "
                        "use fewer workers") from None


def _start_worker():
    """One thread per process, and freed arrays kept for the next scan.

    glibc would give each freed array back to the system, and fault its pages in again for the next,
    which takes a fifth of a scan's time.
    """
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        if libc.mallopt(M_MMAP_MAX, 0):
            libc.mallopt(M_TRIM_THRESHOLD, KEPT_HEAP_BYTES)
