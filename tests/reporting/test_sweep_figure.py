"""The picture of a sweep."""
import matplotlib.image
import numpy as np

from mri import mosaic, mosaic_files
from reporting import figures, sweep_figure


def test_samples_are_drawn_side_by_side(tmp_path, monkeypatch):
    header = {"size": 16, "layout": "rgb", "grid": 3, "affine": np.diag([2.0, 2, 2, 1]).tolist()}
    (tmp_path / "mosaics").mkdir()
    for i in range(14):
        volume = np.full((16, 16, 16), 10 * i, np.uint8)
        mosaic_files.write_mosaic(mosaic_files.mosaic_path(tmp_path, f"{i:06d}"),
                                  mosaic.tile(volume, "rgb"))
    columns = []
    draw = figures.montage
    monkeypatch.setattr(figures, "montage", lambda path, found, *args, **kwargs: (
        columns.extend(found), draw(path, found, *args, **kwargs)))
    path = sweep_figure.draw_sweep(tmp_path, header, "age", [str(60 + i) for i in range(14)])
    assert len(columns) == sweep_figure.MAX_SHOWN
    assert (columns[0][0], columns[-1][0]) == ("age 60", "age 73")
    assert columns[0][1].max() == 0 and columns[-1][1].max() == 130
    assert matplotlib.image.imread(path).shape[1] > 1000
    columns.clear()
    sweep_figure.draw_sweep(tmp_path, header, "age", ["60"])    # --num-samples 1
    assert [heading for heading, _ in columns] == ["age 60"]
