"""Runs of which something is damaged, or another's: what is resumed, what is set aside, what is
said."""
import json
import os
import shutil

import pytest
import torch
from helpers import error_line, finetune_flags, script
from safetensors.torch import load_file

from training import checkpoint, log_lines, run_folder, run_identity, run_lock
from training.run_folder import Run
from utils.errors import UserError

STATES = ("0000002.state.safetensors", "0000004.state.safetensors")


@pytest.fixture(scope="module")
def train_in(data, vae_folder, pretrained):
    """A function that trains in a results folder."""
    def run(results, steps, *more, expect=0):
        return script("train.py", "--data-path", data, "--vae", vae_folder, "--results-dir",
                      results, "--max-steps", steps, *finetune_flags(pretrained), *more,
                      expect=expect)
    return run


@pytest.fixture(scope="module")
def trained(train_in, tmp_path_factory):
    """A results folder with a run of 4 steps, and one of 6 with another seed and rate."""
    results = tmp_path_factory.mktemp("damaged")
    train_in(results, 4)
    train_in(results, 6, "--global-seed", 1, "--lr", 2e-3)
    return results


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run of 4 steps, alone in its results folder."""
    return shutil.copytree(trained / "000-DiT-T-4", tmp_path / "r" / "000-DiT-T-4")


@pytest.fixture
def train(train_in, tmp_path):
    """A function that trains in the results folder of `run`."""
    return lambda *args, **kwargs: train_in(tmp_path / "r", *args, **kwargs)


def states_of(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir() if ".state." in path.name)


def flip_a_byte(path):
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


def same_tensors(a, b):
    a, b = load_file(a), load_file(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# ------------------------------------------------------------------------------- damaged states

def test_a_damaged_state_is_set_aside_and_never_one_of_the_two_kept(train, trained, run):
    assert states_of(run) == list(STATES)
    flip_a_byte(run / "checkpoints" / STATES[1])
    done = train(6)
    assert f"{STATES[1]}: damaged" in done.stderr and "resumes at step 2" in done.stdout
    assert f"is set aside as {STATES[1]}.damaged" in done.stderr
    assert states_of(run) == [STATES[1], f"{STATES[1]}.damaged", "0000006.state.safetensors"]
    for name in (STATES[1], "0000006.state.safetensors"):
        checkpoint.verify(run / "checkpoints" / name)
    before = trained / run.name / "checkpoints" / STATES[1]
    assert same_tensors(run / "checkpoints" / STATES[1], before)


def test_the_good_state_stays_until_two_are_written(train, run):
    """As before, but stopped right after the first save: both states are intact."""
    flip_a_byte(run / "checkpoints" / STATES[1])
    train(3, "--ckpt-every", 3)
    intact = [name for name in states_of(run) if not name.endswith("damaged")]
    assert intact == [STATES[0], "0000003.state.safetensors"]
    for name in intact:
        checkpoint.verify(run / "checkpoints" / name)


def small_run(folder):
    """A Run in which states are files of a few bytes."""
    run = Run.create(folder, "DiT-T/4", {"lr": 1})
    run.open_logs(0)
    return run


def save(run, *steps):
    for step in steps:
        run.save_state(step, {"step": step}, {"raw": {"a": torch.full((9,), float(step))}})


def test_retention_counts_intact_states_alone(tmp_path):
    run = small_run(tmp_path)
    save(run, 1, 2, 3)
    assert [path.name[:7] for path in run.states()] == ["0000003", "0000002"]
    run._lock.close()
    again = Run(run.folder)
    again.open_logs(3)
    flip_a_byte(again.states()[1])               # the older one, which nobody looks at
    path, _ = again.newest_state()
    again.resume_from(path)
    save(again, 4)
    assert [path.name[:7] for path in again.states()] == ["0000004", "0000003"]
    for path in again.states():
        checkpoint.verify(path)


def test_nothing_is_removed_while_only_one_state_is_known_to_be_good(tmp_path):
    run = small_run(tmp_path)
    save(run, 1, 2)
    run._lock.close()
    again = Run(run.folder)                      # has looked at none of them
    again.open_logs(2)
    save(again, 3)
    assert [path.name[:7] for path in again.states()] == ["0000003", "0000002", "0000001"]
    save(again, 4)
    assert [path.name[:7] for path in again.states()] == ["0000004", "0000003"]


# ------------------------------------------------------------------------- states of another run

def test_a_state_of_another_run(train, trained, run):
    for name in STATES[1], "0000006.state.safetensors":
        shutil.copy(trained / "001-DiT-T-4" / "checkpoints" / name, run / "checkpoints" / name)
    done = train(6)
    assert "belongs to another run (--lr 0.002, here 0.001)" in done.stderr
    assert "resumes at step 2" in done.stdout
    assert [name for name in states_of(run) if name.endswith(".damaged")] == [
        f"{STATES[1]}.damaged", "0000006.state.safetensors.damaged"]
    identity = checkpoint.read_metadata(run / "checkpoints" / STATES[1])["identity"]
    assert (identity["global_seed"], identity["lr"]) == (0, 1e-3)
    assert "data_path" not in identity and "ckpt" not in identity


def test_only_states_of_other_runs(train, trained, run):
    for name in STATES:
        shutil.copy(trained / "001-DiT-T-4" / "checkpoints" / STATES[1],
                    run / "checkpoints" / name)
    line = error_line(train(4, "--resume", run, expect=2))
    assert "none of its states to resume from is intact" in line
    assert states_of(run) == list(STATES)       # nothing is touched


def test_what_makes_a_state_another_runs():
    flags = {"lr": 1, "seed": 0, "data_path": "a", "new_flag": 5}
    for identity in ({"lr": 1, "seed": 0}, {"lr": 1, "data_path": "b"}, {}):
        run_folder._check_is_of_run("s", {"identity": identity}, flags)
    run_folder._check_is_of_run("s", {}, flags)
    with pytest.raises(UserError, match="s: belongs to another run \\(--seed 3, here 0\\)"):
        run_folder._check_is_of_run("s", {"identity": {"lr": 1, "seed": 3}}, flags)


def test_older_states_do_not_say_whose_they_are(train, run):
    (run / "checkpoints" / STATES[1]).unlink()
    path = run / "checkpoints" / STATES[0]
    metadata, tensors = dict(checkpoint.read_metadata(path)), load_file(path)
    for key in ("format", "version", "mosaicdit_version", "sha256", "identity"):
        metadata.pop(key)
    groups = {}
    for key, tensor in tensors.items():
        group, name = key.split(".", 1)
        groups.setdefault(group, {})[name] = tensor
    checkpoint.save_checkpoint(path, metadata, **groups)
    done = train(4)
    assert "resumes at step 2" in done.stdout
    assert f"{STATES[0]} was written by an earlier version" in done.stdout


# ------------------------------------------------------------------------------ args.json, logs

BAD_FLAGS = {"empty": b"", "list": b"[1]", "bytes": b"\xff{}", "null": b"null",
             "deep": b"[" * 10 ** 5}


@pytest.mark.parametrize("bad", BAD_FLAGS)
def test_one_bad_args_json_stops_no_other_run(tmp_path, bad, capsys):
    flags = {"lr": 1, "data_path": "a"}
    Run.create(tmp_path, "DiT-T/4", flags)._lock.close()
    Run.create(tmp_path, "DiT-T/4", flags)._lock.close()
    damaged = tmp_path / "001-DiT-T-4" / "args.json"
    damaged.write_bytes(BAD_FLAGS[bad])
    found = Run.find(tmp_path, "DiT-T/4", "auto", flags)
    assert found.folder.name == "000-DiT-T-4"
    assert f"warning: {damaged.parent} is not resumed: {damaged}" in capsys.readouterr().err
    with pytest.raises(UserError, match="args.json"):
        Run.find(tmp_path, "DiT-T/4", str(damaged.parent), flags)


@pytest.mark.parametrize("path", [5, ["a"], "a\0b", {"a": 1}])
def test_paths_in_args_json_that_are_none(tmp_path, path):
    flags = {"lr": 1, "data_path": "a"}
    Run.create(tmp_path, "DiT-T/4", flags | {"data_path": path})._lock.close()
    assert Run.find(tmp_path, "DiT-T/4", "auto", flags) is None
    assert not run_identity.has_same_paths(flags, {"data_path": path})


def test_lines_that_train_did_not_write(tmp_path, capsys):
    path = tmp_path / "log.jsonl"
    good = [json.dumps({"step": step, "loss": 0.5}).encode() for step in (1, 2, 3)]
    bad = [b"5", b"null", b"{}", b"\xff\xfe", b'{"step": "2"}', b'{"step": 2', b"[" * 10 ** 5]
    path.write_bytes(b"\n".join([good[0], *bad, *good[1:]]))
    assert log_lines.lines_until(2, path) == [line + b"\n" for line in good[:2]]
    assert f"warning: {path}: 7 damaged lines are dropped, the first is line 2" in (
        capsys.readouterr().err)
    assert log_lines.lines_until(2, tmp_path / "none") == []
    os.truncate(path, 2 ** 40)
    with pytest.raises(UserError, match="larger than the 256 MiB that are read"):
        log_lines.lines_until(2, path)


def test_a_run_with_a_damaged_log_resumes(train, run):
    path = run / "log.jsonl"
    before = path.read_bytes()
    path.write_bytes(b"\xff\nnull\n" + before + b"{}\n")
    done = train(6)
    assert "3 damaged lines are dropped" in done.stderr and "resumes at step 4" in done.stdout
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [2, 4, 6] and path.read_bytes().startswith(before)


# ----------------------------------------------------------------------------------------- links

def test_a_lock_that_is_a_pipe(tmp_path, monkeypatch):
    """Also in a Slurm job, which reads what the lock holds."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    Run.create(tmp_path, "DiT-T/4", {"lr": 1})._lock.close()
    lock = tmp_path / "000-DiT-T-4" / ".lock"
    assert lock.read_text() == "7"
    assert run_lock.lock_patience(lock.parent) == run_lock.LOCK_PATIENCE
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(UserError, match="not a regular file"):
        Run.find(tmp_path, "DiT-T/4", "auto", {"lr": 1})


@pytest.mark.parametrize("name", [".lock", "log.txt", "log.jsonl"])
def test_links_in_a_run_folder_are_not_written(train, run, tmp_path, name):
    victim, path = tmp_path / "thesis.tex", run / name
    victim.write_text("precious")
    path.unlink()
    if name == "log.txt":
        os.link(victim, path)
    else:
        path.symlink_to(victim)
    done = train(5, "--resume", run, expect=0 if name == "log.jsonl" else 2)
    if name != "log.jsonl":     # it is written again, in the place of the link
        assert f"{path}: is a " in error_line(done)
    assert victim.read_text() == "precious"
