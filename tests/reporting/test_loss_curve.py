"""The losses of a run as a picture."""
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from reporting import loss_curve

ENTRIES = [{"step": 1, "loss": 0.9}, {"step": 50, "loss": 0.5}, {"step": 100, "loss": None},
           {"step": 50, "held_out_loss": 0.6, "held_out_train_loss": 0.55, "key": "a"},
           {"step": 100, "held_out_loss": 0.7, "held_out_train_loss": 0.5, "key": "a"}]


def axes_of(tmp_path, monkeypatch, entries):
    """The axes of what is drawn."""
    figures = []
    monkeypatch.setattr(loss_curve, "Figure",
                        lambda **kwargs: figures.append(Figure(**kwargs)) or figures[-1])
    loss_curve.draw(tmp_path / "loss.png", entries)
    return figures[0].axes[0]


def test_curves_and_the_lowest_point(tmp_path, monkeypatch):
    ax = axes_of(tmp_path, monkeypatch, ENTRIES)
    curves = [line.get_xydata().tolist() for line in ax.lines]
    assert curves == [[[1, 0.9], [50, 0.5]], [[50, 0.55], [100, 0.5]], [[50, 0.6], [100, 0.7]],
                      [[50, 0.6]]]
    assert ax.get_xscale() == "log" and ax.texts[0].get_text() == "lowest: step 50"
    picture = np.asarray(Image.open(tmp_path / "loss.png"))
    assert picture.shape[1] > 800 and picture.std() > 10


def test_held_out_volumes_that_changed_are_not_connected(tmp_path, monkeypatch):
    entries = [*ENTRIES, *({"step": step, "held_out_loss": 0.1, "key": "b"} for step in (110, 120))]
    ax = axes_of(tmp_path, monkeypatch, entries)
    assert [[110, 0.1], [120, 0.1]] in [line.get_xydata().tolist() for line in ax.lines]


def test_a_short_run_has_linear_steps(tmp_path, monkeypatch):
    entries = [{"step": step, "loss": 1 / step} for step in (2, 4)]
    assert axes_of(tmp_path, monkeypatch, entries).get_xscale() == "linear"


def test_one_point_is_no_curve(tmp_path):
    loss_curve.draw(tmp_path / "loss.png", ENTRIES[:1])
    assert not (tmp_path / "loss.png").exists()


def test_a_picture_that_cannot_be_written_is_a_warning(tmp_path, capsys):
    loss_curve.draw_or_warn(tmp_path / "no" / "loss.png", ENTRIES)
    assert "warning" in capsys.readouterr().err
