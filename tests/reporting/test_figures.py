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
    lower = two[two.shape[0] // 2 + 2:]                          # below the divider
    assert two[two.shape[0] // 2 - 1:two.shape[0] // 2 + 2].mean(1).max() > 100
    third = one.shape[1] * 3 // 8 + 20
    assert lower[:, :third].max() > 60 and lower[:, third:].max() == 0  # three of eight columns


def test_nearest_neighbors_show_the_difference(tmp_path):
    same, other = volume(200), volume(120)
    rows = [("s0", "t0", 1.0, same, same), ("s1", "t1", 0.9, same, other)]
    figures.nearest_neighbors(tmp_path / "n.png", rows, VOXELS, "MS-SSIM")
    pixels = picture(tmp_path / "n.png")
    pixels = pixels[:, :round(0.94 * pixels.shape[1])]          # without the color scale
    half = pixels.shape[0] // 2
    third = pixels.shape[1] // 3 + 8                              # behind the divider
    headings = round(0.3 * figures.DPI) + 2
    copied, differing = pixels[headings:half - 3, 2 * third:], pixels[half + headings:, 2 * third:]
    assert copied.max() < 5 and differing.max() > 60
    # black minus white must not wrap around: |0 - 200| is bright
    figures.nearest_neighbors(tmp_path / "w.png", [("s", "t", 0.1, same * 0, same)], VOXELS, "r")
    assert picture(tmp_path / "w.png")[headings:, 2 * third:pixels.shape[1]].max() > 100


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


AFFINE = np.array([[1.0, 0, 0, -5.5], [0, 1.5, 0, -7], [0, 0, 2.0, -6], [0, 0, 0, 1]])


@pytest.mark.parametrize("view, depth, expected", [
    ("sagittal", 0.5, 0.5), ("coronal", 0.5, 0.5), ("axial", 0.5, 2), ("axial", 0, -6),
    ("axial", 1, 8), ("sagittal", 0.25, -2.5)])
def test_slice_positions(view, depth, expected):
    """Of the slice that view_slice takes: index 6 of 12, 5 of 10 and 4 of 8 at depth 0.5."""
    assert figures.slice_position((12, 10, 8), view, depth, AFFINE) == pytest.approx(expected)


def yellow(path):
    """How much of a picture is written in the color of marks."""
    rgb = np.array(Image.open(path).convert("RGB")).astype(int)
    return int(((rgb[..., 0] > 120) & (rgb[..., 2] < 0.6 * rgb[..., 0])).sum())


def test_every_picture_has_marks_and_positions(tmp_path):
    black = np.zeros((12, 10, 8), np.uint8)
    pairs = [("s", "t", 1.0, black, black)]
    draw = {"montage": lambda path, **more: figures.montage(path, [("a", black)], VOXELS, **more),
            "gallery": lambda path, **more: figures.gallery(path, {"a": black[None]}, VOXELS,
                                                            **more)}
    for name, function in draw.items():
        function(tmp_path / "plain.png")
        function(tmp_path / "mm.png", affine=AFFINE)
        assert yellow(tmp_path / "mm.png") > yellow(tmp_path / "plain.png") > 20, name
    figures.nearest_neighbors(tmp_path / "n.png", pairs, VOXELS, "r", affine=AFFINE)
    assert yellow(tmp_path / "n.png") > 100


def test_a_line_divides_real_from_synthetic(tmp_path):
    black = np.zeros((12, 10, 8), np.uint8)
    figures.montage(tmp_path / "m.png", [("real", black), ("synthetic", black)], VOXELS)
    pixels = picture(tmp_path / "m.png")
    middle = pixels[pixels.shape[0] // 2:, pixels.shape[1] // 2:pixels.shape[1] // 2 + 40]
    assert middle.min(0).max() > 100            # one column of it is bright from top to bottom


def test_the_difference_has_a_scale(tmp_path):
    same = volume(200)
    figures.nearest_neighbors(tmp_path / "n.png", [("s", "t", 1.0, same, same)], VOXELS, "r")
    pixels = picture(tmp_path / "n.png")
    scale = pixels[:, round(0.95 * pixels.shape[1]):round(0.957 * pixels.shape[1])].mean(1)
    inside = np.flatnonzero(scale > 20)
    assert len(inside) > 0.4 * len(scale) and scale[inside[0] + 2] > 200   # 1 is on top
