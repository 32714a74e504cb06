import numpy as np
import pytest
from PIL import Image

from reporting import charts


def entry(name="MMD, linear", aim="low", value=3.0, **more):
    return {"name": name, "aim": aim, "how": "how", "value": value, **more}


FLOOR = {"mean": 2.0, "low": 1.0, "high": 4.0}
WHOLE = entry(interval=[2.0, 5.0], floor=FLOOR, at_floor_n=FLOOR, vae={"rgb": 1.0, "gray": None})


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, instead of files."""
    found = {}
    monkeypatch.setattr(charts, "save_figure", lambda fig, path: found.update({path.name: fig}))
    return found


def test_the_charts_that_the_numbers_allow(tmp_path):
    entries = {
        "mmd_linear": WHOLE,
        "mmd_rbf": entry(value=None),
        "gradient_right": entry("gradient energy, right-left", "1", 0.9, interval=[0.8, 1.0]),
        "fid_infinity_a": entry("FID∞-A", n=[2, 4, 8], fid=[9.0, 7.0, 6.0], r2=0.9),
        "nearest_ms_ssim": entry(
            "nearest training volume, MS-SSIM", "real", 0.9, interval=[0.8, 0.95],
            target={"value": 0.85, "interval": [0.8, 0.9]}, threshold=0.05,
            of_volumes={"real": [0.8, 0.9], "synthetic": [0.9, 0.7, 0.6]})}
    charts.draw_all(tmp_path, entries)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "distances.png", "fid.png", "intervals.png", "smoothness.png"]
    for path in tmp_path.iterdir():
        assert np.array(Image.open(path)).std() > 5


def test_nothing_is_drawn_without_numbers(tmp_path):
    charts.draw_all(tmp_path, {"mmd_linear": entry(), "gradient_right": entry(value=None)})
    assert list(tmp_path.iterdir()) == []


def test_intervals_show_value_floor_ceiling_and_target(drawn, tmp_path):
    real = entry("MS-SSIM within the set", "real", 0.9, target={"value": 0.8})
    charts.intervals(tmp_path / "i.png", {"a": WHOLE, "b": real, "c": entry(aim="1")})
    first, second, third, unused = drawn["i.png"].axes
    labels = [label.get_text() for label in first.get_yticklabels()]
    assert labels == ["ceiling: VAE rgb", charts.AT_FLOOR_N, charts.FLOOR, charts.SYNTHETIC]
    bars = [list(line.get_xdata()) for line in first.lines[::2]]
    assert bars == [[1, 1], [1, 4], [1, 4], [2, 5]]
    assert [float(line.get_xdata()[0]) for line in first.lines[1::2]] == [1, 2, 2, 3]
    assert [line.get_xdata()[0] for line in second.lines if line.get_linestyle() == ":"] == [0.8]
    assert [line.get_xdata()[0] for line in third.lines if line.get_linestyle() == ":"] == [1]
    assert first.get_title(loc="left") == "MMD, linear" and not unused.get_visible()
    charts.intervals(tmp_path / "p.png", {"a": {**WHOLE, "p": 0.0314}})
    assert drawn["p.png"].axes[0].get_title(loc="left") == "MMD, linear   p 0.031"


def test_ratios_name_the_directions(drawn, tmp_path):
    entries = {k: entry(f"gradient energy, {name}", "1", 1.2, floor=FLOOR, vae={"rgb": 0.0})
               for k, name in (("a", "right-left"), ("b", "inside rgb tiles"))}
    charts.ratios(tmp_path / "r.png", entries)
    (ax,) = drawn["r.png"].axes
    assert [t.get_text() for t in ax.get_xticklabels()] == ["right-left", "inside\nrgb tiles"]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == [charts.SYNTHETIC, charts.FLOOR, "target"]  # a ratio of 0 has no logarithm
    assert ax.get_yscale() == "log"


def test_extrapolation_meets_the_axis_at_the_limit(drawn, tmp_path):
    e = entry("FID∞-A", value=5.0, n=[2, 4], fid=[9.0, 7.0], r2=1.0)
    charts.extrapolation(tmp_path / "f.png", {"fid_infinity_a": e})
    (ax,) = drawn["f.png"].axes
    points, line = ax.lines
    assert list(points.get_xdata()) == [0.5, 0.25] and list(points.get_ydata()) == [9, 7]
    assert list(line.get_xdata()) == [0, 0.5] and np.allclose(line.get_ydata(), [5, 9])
    assert "FID∞-A: 5" in ax.get_legend().get_texts()[0].get_text()


def test_distances_are_shares(drawn, tmp_path):
    e = entry("nearest training volume, correlation", threshold=0.15,
              of_volumes={"real": [0.9, 0.7], "synthetic": [0.8, 0.6, 0.5, 0.75]})
    charts.distances(tmp_path / "d.png", {"nearest_correlation": e})
    (ax,) = drawn["d.png"].axes
    real, synthetic, threshold = ax.lines
    assert np.allclose(real.get_xdata(), [0.1, 0.1, 0.3])
    assert np.allclose(synthetic.get_xdata(), [0.2, 0.2, 0.25, 0.4, 0.5])
    assert np.allclose(synthetic.get_ydata(), [0, 0.25, 0.5, 0.75, 1])
    assert threshold.get_xdata()[0] == 0.15 and "1 − correlation" in ax.get_xlabel()


def test_scaling_against_tokens_and_batch(drawn, tmp_path):
    points = [dict(way=way, tokens=t, batch=b, seconds=t * b / scale, peak=float(b))
              for t, b in ((64, 1), (256, 1), (64, 2), (64, 4))
              for way, scale in (("all", 1000), ("foreground", 2000))]
    charts.scaling(tmp_path / "s.png", points, "title")
    axes = drawn["s.png"].axes
    assert [ax.get_xlabel() for ax in axes] == ["tokens", "batch", "tokens", "batch"]
    assert [list(ax.lines[0].get_xdata()) for ax in axes[:2]] == [[64, 256], [1, 2, 4]]
    assert [list(ax.lines[0].get_ydata()) for ax in axes[2:]] == [[1, 1], [1, 2, 4]]
    assert list(axes[0].lines[1].get_ydata()) == [0.032, 0.128]
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == [
        "all tokens", "foreground tokens"]
    charts.scaling(tmp_path / "one.png", points[:1], "title")
    assert [ax.get_xlabel() for ax in drawn["one.png"].axes] == ["tokens", "tokens"]
