import json
from collections import Counter

import numpy as np
import pytest
from helpers import related

from metrics import (
    copy_search,
    memorization,
    mmd,
    ms_ssim,
    over_training,
    registry,
    statistic,
    volume_features,
)
from metrics.options import MetricOptions, NotComputed
from metrics.volume_sets import VolumeSet
from utils.errors import UserError


@pytest.fixture(scope="module")
def volumes():
    return (related(34, 16, seed=2) * 255).astype(np.uint8)


def a_pool(volumes, copies):
    """Ten real volumes, twelve samples of which so many are copies, twelve training volumes."""
    real, fake, train = volumes[:10], volumes[10:22].copy(), volumes[22:]
    fake[:copies] = np.roll(train[:copies, ::-1], 1, axis=2)
    sets = []
    for flag, n in (("--real", 10), ("--synthetic", 12), ("--train", 12)):
        ids = [f"{flag[2:]}{i}" for i in range(n)]
        sets.append(VolumeSet(flag, flag[2:], None, ids, ids, 16, np.ones(3), read=None))
    pool = statistic.Pool(*sets)
    pool.volumes = np.concatenate([real, fake, train])
    return pool


def test_numbers_of_a_checkpoint(volumes):
    options = MetricOptions(names=("histogram",))
    losses = {100: 0.5, 200: 0.4, 300: 0.3}
    honest = over_training.numbers(250, a_pool(volumes, 0), options, losses)
    copied = over_training.numbers(50, a_pool(volumes, 9), options, losses)
    assert list(honest) == list(over_training.COLUMNS) == list(copied)
    assert honest["held_out_loss"] == 0.4 and copied["held_out_loss"] is None
    assert honest["copies"] == 0 and copied["copies"] == 9 and copied["copied_share"] == 0.75
    assert copied["ratio"] < 0.01 < 0.7 < honest["ratio"]
    assert honest["ratio_of_held_out"] == copied["ratio_of_held_out"] > 0.7
    assert copied["feature_ratio"] < 0.2 < honest["feature_ratio"]
    assert honest["feature_ratio_of_held_out"] == copied["feature_ratio_of_held_out"] > 0.2
    assert honest["samples"] == 12 and 0 <= honest["coverage"] <= 1


def test_what_cannot_be_computed_is_said_once_for_each_reason(volumes, monkeypatch, capsys):
    def check(pool, options):
        raise NotComputed("no \x1b weights")

    for metric in registry.METRICS:
        if metric.chosen(("ms-ssim", "coverage")):
            monkeypatch.setitem(metric.__dict__, "check", check)
    row = over_training.numbers(250, a_pool(volumes, 0), MetricOptions(), {})
    assert row["coverage"] is row["ms_ssim_difference"] is None and row["mmd"] is not None
    lines = [line for line in capsys.readouterr().out.splitlines() if "not computed" in line]
    assert lines == ["step 250, MS-SSIM, coverage: not computed, no \\x1b weights"]


def a_counted_set(flag, volumes, reads):
    """A set that counts how often each of its volumes is read."""
    def read(i):
        reads[flag] += 1
        return volumes[i]

    ids = [f"{flag[2:]}{i}" for i in range(len(volumes))]
    return VolumeSet(flag, flag[2:], None, ids, ids, 16, np.ones(3), read)


def test_the_other_sets_are_read_once_and_numbers_stay_exactly_the_same(volumes, monkeypatch):
    """Of three checkpoints, the second with fewer samples, against an evaluation of each alone."""
    reads, calls = Counter(), Counter()
    for module, name in ((copy_search, "CopySearch"), (mmd, "gram"), (ms_ssim, "ms_ssim_pairs"),
                         (volume_features, "features")):
        counted(monkeypatch, module, name, calls)
    real, train = (a_counted_set(flag, part, reads)
                   for flag, part in (("--real", volumes[:10]), ("--train", volumes[22:])))
    samples = [volumes[10:18], np.concatenate([volumes[22:25, ::-1], volumes[18:21]]),
               volumes[14:22]]
    sets = [a_counted_set("--synthetic", part, reads) for part in samples]
    options = MetricOptions()
    pools = over_training.PoolOfRun(real, train, 1, None)
    found = [over_training.numbers(0, pools.with_samples(sets[0]), options, {})]
    first = Counter(calls)
    for step, synthetic in enumerate(sets[1:], 1):
        found.append(over_training.numbers(step, pools.with_samples(synthetic), options, {}))
    assert reads == {"--real": 10, "--train": 12, "--synthetic": 8 + 6 + 8}
    assert calls["CopySearch"] == 1
    assert first["gram"] == 3 + 2 and first["features"] == 2    # pairs of sets; with the training
    assert calls["gram"] == first["gram"] + 2 * (2 + 1)         # set; then without the real ones
    assert calls["features"] == first["features"] + 2
    for step, synthetic in enumerate(sets):
        alone = statistic.Pool(real, synthetic, train)
        alone.load(1, None)
        assert over_training.numbers(step, alone, options, {}) == found[step]
    assert [row["copies"] for row in found] == [0, 3, 0]


def test_what_makes_numbers_misleading_is_said_once(volumes, capsys):
    real, train, samples = (a_counted_set(flag, part, Counter()) for flag, part in (
        ("--real", volumes[:4]), ("--train", volumes[2:9]), ("--synthetic", volumes[10:14])))
    pools = over_training.PoolOfRun(real, train, 1, None)
    pools.with_samples(samples)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert line == ("warning: 2 of 4 real volumes are in the training set, voxel for voxel: "
                    "real2, real3")
    pools.with_samples(a_counted_set("--synthetic", volumes[8:12], Counter()))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert line.startswith("warning: 1 of 4 synthetic volumes are in the training set")


def counted(monkeypatch, module, name, calls):
    """Counts the calls of a function, wherever it is imported."""
    plain = getattr(module, name)

    def count(*args, **kwargs):
        calls[name] += 1
        return plain(*args, **kwargs)

    for user in (module, memorization):
        if getattr(user, name, None) is plain:
            monkeypatch.setattr(user, name, count)


def test_held_out_volumes_that_were_trained_on_do_not_count():
    copies = {"ratios": {"real": [0.0, 0.9, 0.8]}, "feature_ratios": {"real": [0.1, 0.5, None]}}
    assert over_training._of_held_out(copies, "ratios") == [0.9, 0.8]
    assert over_training._of_held_out(copies, "feature_ratios") == [0.5, None]
    assert over_training._median([0.9, 0.8]) == pytest.approx(0.85)
    assert over_training._median([0.5, None]) is None is over_training._median([])


def test_the_progress_of_sample_py_is_shown(tmp_path, monkeypatch, capsys):
    """But its error not, which becomes ours."""
    (tmp_path / "sample.py").write_text(
        "import sys\nprint('samples: 1/2 in 3 s', file=sys.stderr)\n"
        "sys.exit(sys.argv[1:] and 'sample.py: error: --ckpt x: no\\n')\n")
    monkeypatch.setattr(over_training, "SCRIPTS_DIR", tmp_path)
    with pytest.raises(UserError, match="^c: cannot be sampled; --ckpt x: no$"):
        over_training.sample("c", tmp_path / "s", 2, {})
    assert capsys.readouterr().err == "samples: 1/2 in 3 s\n"
    (tmp_path / "sample.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(UserError, match="^c: cannot be sampled; exit code 3$"):
        over_training.sample("c", tmp_path / "s", 2, {})


def test_what_sample_py_says_is_passed_on(tmp_path):
    with pytest.raises(UserError) as e:
        over_training.sample(tmp_path / "0000001.safetensors", tmp_path / "s", 2,
                             {"--sampler": "ddim", "--num-sampling-steps": None})
    assert "cannot be sampled" in str(e.value) and "\n" not in str(e.value)
    assert not (tmp_path / "s").exists()


def test_the_command_of_a_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "sample.py").write_text(
        "import json, sys\nopen(__file__ + '.json', 'w').write(json.dumps(sys.argv[1:]))\n")
    monkeypatch.setattr(over_training, "SCRIPTS_DIR", tmp_path)
    over_training.sample("c.safetensors", "out", 4, {"--sampler": None, "--seed": 3})
    assert json.loads((tmp_path / "sample.py.json").read_text()) == [
        "--ckpt", "c.safetensors", "--output", "out", "--num-samples", "4", "--seed", "3"]
