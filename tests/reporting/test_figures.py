import matplotlib
import numpy as np
import pytest
from PIL import Image

from reporting import figures

VOXELS = np.array([1.0, 1.5, 2.0])  # mm


def picture(path):
    """Gray levels of a picture, (H, W)."""
    return np.array(Image.open(path).convert("L")).astype(int)


def volume(value=200):
    """A bright block in the upper front right part of a (12, 10, 8) volume."""
    out = np.zeros((12, 10, 8), np.uint8)
    out[6:, 5:, 4:] = value
    return out


def test_montage_shows_each_view_upright(tmp_path):
    figures.montage(tmp_path / "m.png", [("a", volume())], VOXELS, depths=(0.6,))
    pixels = picture(tmp_path / "m.png")
    height, width = pixels.shape
    # the views lie below each other, in proportion to 15, 16 and 16 mm; the block is in the upper
    # right quarter of each: right or anterior on the right, anterior or superior up
    left = round(0.3 / (1.45 + 0.3) * width)
    top = round(0.35 * figures.DPI)
    edges = top + (height - top) * np.cumsum([0, 15, 16, 16]) / 47
    for start, end in zip(edges[:-1], edges[1:]):
        view = pixels[round(start) + 3:round(end) - 3, left:]
        bright = np.argwhere(view > 150)
        assert bright[:, 0].mean() < 0.4 * len(view)
        assert bright[:, 1].mean() > 0.55 * view.shape[1]


def test_floating_point_and_uint8_look_the_same(tmp_path):
    figures.montage(tmp_path / "u.png", [("a", volume(255))], VOXELS, title="title")
    figures.montage(tmp_path / "f.png", [("a", volume(255) / 255)], VOXELS, title="title")
    assert np.array_equal(picture(tmp_path / "u.png"), picture(tmp_path / "f.png"))
    plain = figures.montage(tmp_path / "p.png", [("a", volume(255))], VOXELS)
    assert plain is None
    assert not np.array_equal(picture(tmp_path / "p.png"), picture(tmp_path / "u.png"))


def test_gallery_has_a_block_per_group(tmp_path):
    many = np.stack([volume(50 + 20 * k) for k in range(10)])
    figures.gallery(tmp_path / "one.png", {"real": many}, VOXELS)
    figures.gallery(tmp_path / "two.png", {"real": many, "synthetic": many[:3]}, VOXELS)
    one, two = picture(tmp_path / "one.png"), picture(tmp_path / "two.png")
    assert two.shape[1] == one.shape[1] and abs(two.shape[0] - 2 * one.shape[0]) <= 1
    lower = two[two.shape[0] // 2:]
    third = one.shape[1] * 3 // 8 + 20
    assert lower[:, :third].max() > 60 and lower[:, third:].max() == 0  # three of eight columns


def test_nearest_neighbors_show_the_difference(tmp_path):
    same, other = volume(200), volume(120)
    rows = [("s0", "t0", 1.0, same, same), ("s1", "t1", 0.9, same, other)]
    figures.nearest_neighbors(tmp_path / "n.png", rows, VOXELS, "MS-SSIM")
    pixels = picture(tmp_path / "n.png")
    half = pixels.shape[0] // 2
    third = pixels.shape[1] // 3
    headings = round(0.3 * figures.DPI) + 2
    copied, differing = pixels[headings:half - 3, 2 * third:], pixels[half + headings:, 2 * third:]
    assert copied.max() < 5 and differing.max() > 60
    # black minus white must not wrap around: |0 - 200| is bright
    figures.nearest_neighbors(tmp_path / "w.png", [("s", "t", 0.1, same * 0, same)], VOXELS, "r")
    assert picture(tmp_path / "w.png")[headings:, 2 * third:].max() > 150


@pytest.mark.parametrize("name, expected", [
    ("sub-01_T1w", "sub-01_T1w"), ("a" * 28, "a" * 28), ("cost_$5$", r"cost_\$5\$"),
    ("sub-0123456789_ses-0123456789_T1w", "sub-012345678…0123456789_T1w")])
def test_short_names(name, expected):
    found = figures.short_name(name)
    assert found == expected and len(found.replace("\\", "")) <= 28


def test_figures_need_no_display_and_leave_no_state(tmp_path, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    backend = matplotlib.get_backend()
    figures.montage(tmp_path / "m.png", [("a", volume())], VOXELS)
    assert matplotlib.get_backend() == backend
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]
