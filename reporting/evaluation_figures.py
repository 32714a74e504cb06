"""The figures of an evaluation."""
import numpy as np

from reporting import anatomy_figures, charts, figures
from reporting.copy_pairs import copy_and_source
from reporting.structures import effects_by_structure

PAIRS_SHOWN = 4     # synthetic volumes beside a training volume


def draw(folder, pool, entries, nearest):
    """Writes all figures.

    :param folder: Path to create
    :param pool: metrics.statistic.Pool, loaded
    :param entries: {key: entry of metrics.json}
    :param nearest: {key: for each synthetic volume, the index of the nearest training volume}
    """
    folder.mkdir()
    real, synthetic = pool.sets["real"], pool.sets["synthetic"]
    middle = len(synthetic) // 2
    figures.montage(
        folder / "montage.png",
        [(f"real ({figures.short_name(real.ids[0])})", pool.part("real")[0]),
         (f"synthetic ({figures.short_name(synthetic.ids[middle])})",
          pool.part("synthetic")[middle])],
        real.voxel_sizes, affine=real.affine)
    groups = {f"real, N = {len(real)}": pool.part("real"),
              f"synthetic, N = {len(synthetic)}": pool.part("synthetic")}
    for layout in pool.layouts:
        groups[f"real after VAE, {layout}, N = {len(real)}"] = pool.part(f"vae {layout}")
    figures.gallery(folder / "gallery.png", groups, real.voxel_sizes, affine=real.affine)
    charts.draw_all(folder, entries)
    if effects_by_structure(entries):
        anatomy_figures.effects(folder / "structures.png", entries)
    if "outlines" in pool.results:
        anatomy_figures.outlines(folder / "outlines.png", pool.results["outlines"])
    flagged = entries.get("copies", {}).get("flagged")
    if flagged:
        _draw_copies(folder / "copies.png", pool, flagged)
    if nearest:
        key = "nearest_ms_ssim" if "nearest_ms_ssim" in nearest else "nearest_correlation"
        _draw_nearest(folder / "nearest.png", pool, entries[key], nearest[key])


def _draw_copies(path, pool, flagged):
    """The clearest copies beside their sources, which are mirrored and moved as they match.

    :param flagged: of metrics.json's entry "copies"
    """
    real = pool.sets["real"]
    rows = [(found["volume"], found["source"], 1 - found["distance"],
             *copy_and_source(pool, found)) for found in flagged[:PAIRS_SHOWN]]
    figures.nearest_neighbors(path, rows, real.voxel_sizes, "correlation", affine=real.affine)


def _draw_nearest(path, pool, entry, index):
    """The synthetic volumes closest to a training volume.

    :param entry: of metrics.json, with the similarity of each volume
    :param index: (N,) nearest training volume of each synthetic one
    """
    similarity = np.array(entry["of_volumes"]["synthetic"])
    synthetic, training = pool.part("synthetic"), pool.part("train")
    closest = np.argsort(-similarity, kind="stable")[:PAIRS_SHOWN]
    rows = [(pool.sets["synthetic"].ids[i], pool.train.ids[index[i]], similarity[i], synthetic[i],
             training[index[i]]) for i in closest]
    measure = entry["name"].split(", ")[-1]
    real = pool.sets["real"]
    figures.nearest_neighbors(path, rows, real.voxel_sizes, measure, affine=real.affine)
