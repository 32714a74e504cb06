"""The figures of anatomy show what they are given."""
import matplotlib.image
import numpy as np
from matplotlib.colors import to_rgb

from mri.structures import STRUCTURES
from reporting import anatomy_figures


def test_outlines_lie_at_borders_in_the_structures_colors():
    image = np.full((6, 6), 0.5)
    labels = np.zeros((6, 6), np.uint8)
    labels[1:5, 1:5] = 3
    out = anatomy_figures._with_outlines(image, labels)
    color = np.array(to_rgb(anatomy_figures.OUTLINE_COLORS[2]))
    assert out.shape == (12, 12, 3)
    inside = out[2:10, 2:10]
    assert np.allclose(inside[0], color) and np.allclose(inside[:, -1], color)
    assert np.allclose(inside[1:-1, 1:-1], 0.5)          # the structure itself stays
    assert np.allclose(out[:2], 0.5) and np.allclose(out[:, 10:], 0.5)
    assert len(anatomy_figures.OUTLINE_COLORS) == len(STRUCTURES)


def test_figures_are_drawn(tmp_path):
    entries = {}
    for k, name in enumerate(("ventral_dc", "caudate")):
        for family in anatomy_figures.PANELS:
            entries[f"{family}{name}"] = {
                "family": family, "structure": name, "value": None if k else 0.5,
                "interval": [0.1, 0.9], "p_adjusted": 0.01, "vae": {"rgb": 0.2},
                "floor": {"low": -0.3, "high": 0.3}}
    anatomy_figures.effects(tmp_path / "effects.png", entries)
    shown = matplotlib.image.imread(tmp_path / "effects.png")[..., :3]
    red = (np.abs(shown - to_rgb(anatomy_figures.SYNTHETIC)).max(-1) < 0.05).sum()
    assert red > 100
    volume = np.full((8, 8, 8), 100, np.uint8)
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[3:7, 3:7, 3:7] = 7
    anatomy_figures.outlines(tmp_path / "outlines.png", [("one", volume, labels)] * 2)
    shown = matplotlib.image.imread(tmp_path / "outlines.png")[..., :3]
    color = to_rgb(anatomy_figures.OUTLINE_COLORS[6])
    assert (np.abs(shown - color).max(-1) < 0.05).sum() > 300
