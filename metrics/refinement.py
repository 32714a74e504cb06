"""What a refiner does to volumes whose real counterparts are known."""
import numpy as np

from metrics.psnr import psnr
from metrics.smoothness import gradient_energy

AXES = ("right", "anterior", "superior")


def numbers(volumes, targets):
    """How near volumes are to their targets, and how rough compared with them.

    :param volumes, targets: (N, D, D, D) uint8
    :return: dict of the mean PSNR in dB, the gradient energies over the targets', and the
        through-plane roughness, see `metrics.smoothness`
    """
    energy, of_targets = (np.mean([gradient_energy(one) for one in some], 0)[:3]
                          for some in (volumes, targets))
    right, anterior, superior = energy / of_targets
    return {"psnr_db": float(np.mean([psnr(*pair) for pair in zip(volumes, targets)])),
            **{f"gradient_{axis}": float(ratio)
               for axis, ratio in zip(AXES, (right, anterior, superior))},
            "through_plane": float(superior / np.sqrt(right * anterior))}


def table(heading, rows):
    """Numbers as lines for the terminal.

    :param heading: what the rows are of
    :param rows: {name: of `numbers`}
    """
    lines = [f"{heading:28}  PSNR, dB   gradient energy over real: R-L, A-P, I-S   "
             "through-plane roughness"]
    for name, row in rows.items():
        energies = ", ".join(f"{row[f'gradient_{axis}']:.3f}" for axis in AXES)
        lines.append(f"  {name:26}  {row['psnr_db']:8.2f}   {energies:>42}   "
                     f"{row['through_plane']:23.3f}")
    return lines
