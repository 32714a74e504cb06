"""A study of variants of train.py: its plan, its table, and a small one from end to end."""
import dataclasses
import json
import time
from pathlib import Path

import pytest
from helpers import script
from matplotlib.image import imread

from benchmarks import flags, study, study_report
from utils.errors import UserError
from utils.flags import make_parser

VARIANTS = {"slow": ["--tune", "full"], "fast one": ["--tune", "difffit"]}


@pytest.fixture
def small(tmp_path):
    return study.Study(variants=VARIANTS, data_path=Path("data"), train_flags=["--lr", "1"],
                       sample_flags=[], steps=40, seeds=2, jobs=1, turns=2,
                       output=tmp_path / "study")


def outcome(variant, seed, steps, mmd):
    return study.Outcome(variant, seed, steps, 1234,
                         {"mmd_linear": mmd, "ms_ssim": 0.9, "through_plane": 1.5},
                         {"ms_ssim": 0.925})


def outcomes(steps, fast_steps):
    return [outcome("slow", 0, steps, 10.0), outcome("fast one", 0, fast_steps, 20.0),
            outcome("slow", 1, steps, 14.0), outcome("fast one", 1, fast_steps, 23.0)]


def test_variants_are_a_name_and_flags():
    assert study.parse_variants(["a 1: --lr 1e-3 --vae 'a b'", "b+2:"]) == {
        "a 1": ["--lr", "1e-3", "--vae", "a b"], "b+2": []}
    for wrong in ("no colon", ":--lr 1", "a/b: --lr 1", "a: 'open"):
        with pytest.raises(UserError, match="--variant"):
            study.parse_variants([wrong])
    with pytest.raises(UserError, match="another of this name"):
        study.parse_variants(["a: ", "a: --lr 1"])


def test_steps_of_equal_time():
    assert study.steps_of_equal_time(40, {"slow": 2.0, "fast": 0.5, "same": 1.95}) \
        == {"slow": 40, "fast": 160, "same": 40}


def test_speed_is_the_median_after_the_warm_up(small, monkeypatch):
    """Of all turns of a variant, which alternate."""
    called = []

    def fake_call(threads, script, *flags):
        results = flags[flags.index("--results-dir") + 1]
        assert flags[-2:] == ("--full-steps", 0)    # of a run that has no room for them
        called.append(results.relative_to(small.output / "speed").as_posix())
        (results / "000").mkdir(parents=True)
        speeds = [100, 100, 2, 4] if "turn-0" in str(results) else [100, 100, 4, 4]
        log = "".join(f"step {i}/4: loss 1, {speed} steps/s, 0.00 h\n"
                      for i, speed in enumerate(speeds))
        (results / "000" / "log.txt").write_text(log)

    monkeypatch.setattr(study, "_call", fake_call)
    assert study.step_seconds(small) == {"slow": 0.25, "fast one": 0.25}
    assert called == ["slow/turn-0", "fast-one/turn-0", "slow/turn-1", "fast-one/turn-1"]


def test_the_table_has_means_and_ranges(small, tmp_path):
    first, second = outcomes(40, 40), outcomes(40, 160)
    seconds = {"slow": 2.0, "fast one": 0.5}
    lines = study_report.table(small, seconds, first, second)
    assert "MS-SSIM within the set of the real set: 0.925" in lines[0]
    rows = {cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
            for cells in (line.split("|") for line in lines[4:])}
    assert rows["slow"][:4] == ["1,234", "2", "1.00", "12.0 (10.0 … 14.0)"]
    assert rows["fast one"][:4] == ["1,234", "0.5", "0.25", "21.5 (20.0 … 23.0)"]
    assert rows["fast one"][6] == "160"
    study_report.draw(tmp_path / "study.png", small, first, second)
    assert imread(tmp_path / "study.png")[..., :3].std() > 0.02


def test_a_folder_holds_one_task(small):
    study.claim_folder(small)
    study.claim_folder(dataclasses.replace(small, variants={"third": []}, seeds=5))
    task = json.loads((small.output / "task.json").read_text())
    assert task["variants"] == {**VARIANTS, "third": []}
    with pytest.raises(UserError, match="another --train-flags"):
        study.claim_folder(dataclasses.replace(small, train_flags=["--lr", "2"]))
    with pytest.raises(UserError, match="--variant slow: .*other flags"):
        study.claim_folder(dataclasses.replace(small, variants={"slow": []}))


def test_flags_have_defaults():
    parser = make_parser("study")
    flags.add_study_flags(parser)
    args = parser.parse_args(["--data-path", "d", "--output", "o", "--variant", "a: --lr 1"])
    assert (args.steps, args.seeds, args.jobs) == (300, 3, 1)


@pytest.mark.slow
def test_a_small_study(data, vae_folder, tmp_path):
    shared = f"--vae {vae_folder} --ckpt none --tune full --num-classes 2 --model DiT-T/4"
    arguments = ("bench.py", "study", "--data-path", data, "--steps", 2, "--seeds", 1,
                 "--train-flags", shared, "--variant", "a: --lr 1e-3",
                 "--variant", "b: --lr 1e-4", "--turns", 1, "--output", tmp_path / "study",
                 "--sample-flags", "--num-samples 2 --num-sampling-steps 2")
    done = script(*arguments)
    assert "| a | " in done.stdout and "| b | " in done.stdout
    content = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [o["variant"] for o in content["equal_steps"]] == ["a", "b"]
    assert all(o["numbers"]["mmd_linear"] > 0 for o in content["equal_steps"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_that_is_ended_ends_its_scripts(small, tmp_path, monkeypatch, jobs):
    """One that fails ends those that run beside it, too."""
    (tmp_path / "train.py").write_text(
        "import pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--results-dir') + 1]).parent\n"
        "folder.mkdir(parents=True)\n"
        "if 'fast-one' in str(folder) and 'seed-0' in str(folder):\n"
        "    sys.exit('cannot')\n"
        "time.sleep(60)\n"
        "(folder / 'went on').touch()\n")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    plan = [("slow", 0, 40), ("fast one", 0, 40)][2 - jobs:]
    start = time.monotonic()
    with pytest.raises(UserError, match="train.py .*exit code 1; cannot"):
        study._compute(dataclasses.replace(small, jobs=jobs), plan, "equal steps")
    assert time.monotonic() - start < 30
    assert not list(small.output.rglob("went on"))
    assert not study._running


def test_no_further_script_is_started_after_a_failure(small, tmp_path, monkeypatch):
    """One that finishes although it was asked to end is not followed by the next."""
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "results = pathlib.Path(sys.argv[sys.argv.index('--results-dir') + 1])\n"
        "if 'fast-one' in str(results):\n"
        "    sys.exit('cannot')\n"
        "time.sleep(1)\n"
        "(results / '000').mkdir(parents=True)\n")
    (tmp_path / "sample.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(study, "ROOT", tmp_path)
    start = time.monotonic()
    with pytest.raises(UserError, match="exit code 1; cannot"):
        study._compute(dataclasses.replace(small, jobs=2),
                       [("slow", 0, 40), ("fast one", 0, 40)], "equal steps")
    assert time.monotonic() - start < 30
