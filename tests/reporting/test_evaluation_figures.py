"""Which pictures an evaluation gets."""
import numpy as np
from helpers import related

from metrics.statistic import Pool
from metrics.volume_sets import VolumeSet
from reporting import evaluation_figures


def a_set(flag, volumes):
    ids = [f"{flag[2]}{i}" for i in range(len(volumes))]
    return VolumeSet(flag, "folder", None, ids, ids, 16, np.ones(3), volumes.__getitem__,
                     affine=np.eye(4))


def test_pictures(tmp_path):
    volumes = (related(9, 16) * 255).astype(np.uint8)
    pool = Pool(a_set("--real", volumes[:3]), a_set("--synthetic", volumes[3:6]),
                a_set("--train", volumes[6:]))
    pool.load(1, tmp_path)
    evaluation_figures.draw(tmp_path / "a", pool, {}, {})
    assert {"montage.png", "gallery.png"} <= {p.name for p in (tmp_path / "a").iterdir()}
    entry = {"name": "similarity to the nearest, correlation", "aim": "real", "value": 0.5,
             "threshold": 0.2,
             "of_volumes": {"real": [0.1, 0.2, 0.3], "synthetic": [0.2, 0.5, 0.1]}}
    nearest = {"nearest_correlation": np.array([2, 0, 1])}
    evaluation_figures.draw(tmp_path / "b", pool, {"nearest_correlation": entry}, nearest)
    assert (tmp_path / "b" / "nearest.png").stat().st_size > 5000
