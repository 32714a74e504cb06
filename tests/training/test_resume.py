"""What a run is, is its content: paths do not matter, and a new run says why it is one."""
import json
import os
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, TRAIN, error_line, finetune_flags, random_vae, script
from safetensors.torch import load_file

from training import bookkeeping, checkpoint, resume, run_folder, run_identity
from training.run_folder import Run
from utils.errors import UserError
from utils.flags import flag_of


def train(*args, **kwargs):
    return script("train.py", *args, **kwargs)


def runs(results):
    return sorted(path.name for path in results.glob("0*"))


@pytest.fixture
def begun(data, vae_folder, pretrained, tmp_path):
    """A project folder with data, VAE, weights and a run of 2 steps, all by relative paths."""
    project = tmp_path / "project"
    shutil.copytree(data, project / "data")
    shutil.copytree(vae_folder, project / "vae")
    shutil.copy(pretrained / "checkpoints" / "0000002.safetensors", project / "base.safetensors")
    train(*flags("data", "vae", "base.safetensors"), cwd=project)
    return project


def flags(data, vae, ckpt, steps=2):
    return ("--data-path", data, "--vae", vae, *TRAIN, "--ckpt", ckpt, "--results-dir", "results",
            "--max-steps", steps)


@pytest.mark.parametrize("way", ["dots", "absolute", "moved", "copied data", "accum"])
def test_a_run_resumes_wherever_its_files_are(begun, tmp_path, way):
    project, paths, extra = begun, ["data", "vae", "base.safetensors"], ()
    if way == "dots":
        paths = ["./data", "vae/", "../project/base.safetensors"]
    elif way == "absolute":
        paths = [project / path for path in paths]
    elif way == "moved":
        project = tmp_path / "elsewhere"
        begun.rename(project)
        paths = [project / path for path in paths]
    elif way == "copied data":
        shutil.copytree(project / "data", tmp_path / "job" / "scratch")
        paths[0] = tmp_path / "job" / "scratch"
        shutil.rmtree(project / "data")
    else:
        extra = ("--accum", 2)
    done = train(*flags(*paths, steps=3), *extra, cwd=project)
    assert "resumes at step 2" in done.stdout and runs(project / "results") == ["000-DiT-T-4"]
    whole = train(*flags(*paths, steps=3), "--results-dir", tmp_path / "whole", cwd=project)
    assert "resumes at" not in whole.stdout
    ours, theirs = (load_file(folder / "000-DiT-T-4" / "checkpoints" / "0000003.safetensors")
                    for folder in (project / "results", tmp_path / "whole"))
    assert all(torch.equal(ours[key], theirs[key]) or way == "accum" for key in ours)


def test_a_moved_project_samples(begun, tmp_path):
    """Base weights and VAE are found beside the run although it recorded where they were."""
    begun.rename(tmp_path / "elsewhere")
    run = tmp_path / "elsewhere" / "results" / "000-DiT-T-4"
    script("sample.py", "--ckpt", run, "--output", tmp_path / "s", "--num-samples", 1,
           "--sampler", "dpm++", "--num-sampling-steps", 2, "--device", "cpu")
    assert (tmp_path / "s" / "nifti" / "000000.nii.gz").is_file()


def test_a_new_run_says_what_differs(begun, tmp_path):
    paths = ("data", "vae", "base.safetensors")
    line = train(*flags(*paths), "--lr", 2e-3, cwd=begun).stdout
    assert "a new run: it differs from results/000-DiT-T-4 in --lr (0.002, there 0.001)" in line
    assert runs(begun / "results") == ["000-DiT-T-4", "001-DiT-T-4"]
    line = train(*flags(*paths), "--lr", 2e-3, "--label-dropout", 0.2, cwd=begun).stdout
    assert "differs from results/001-DiT-T-4 in --label-dropout (0.2, there 0.1)" in line
    random_vae(begun / "other", seed=5)
    line = train(*flags("data", "other", "base.safetensors"), cwd=begun).stdout
    assert "differs from results/000-DiT-T-4 in --vae (other, there vae)" in line
    other_data = shutil.copytree(begun / "data", begun / "other-data",
                                 ignore=shutil.ignore_patterns("latents-*"))
    content = json.loads((other_data / "manifest.json").read_text())
    content["volumes"] = content["volumes"][:-1]
    (other_data / "manifest.json").write_text(json.dumps(content))
    line = train(*flags("other-data", *paths[1:]), cwd=begun).stdout
    assert "a new run" not in line and len(runs(begun / "results")) == 5  # on other data


def test_a_run_without_warm_up_of_its_average(begun, tmp_path):
    """It is another run than one with warm-up, and resumes exactly."""
    command = ("data", "vae", "base.safetensors")
    line = train(*flags(*command), "--no-ema-warmup", cwd=begun).stdout
    assert "in --ema-warmup (False, there True)" in line
    done = train(*flags(*command, steps=3), "--no-ema-warmup", cwd=begun)
    assert "resumes at step 2" in done.stdout and "as this run was started" not in done.stdout
    train(*flags(*command, steps=3), "--no-ema-warmup", "--results-dir", tmp_path / "whole",
          cwd=begun)
    ours, theirs = (folder / "checkpoints" / "0000003.safetensors" for folder in (
        begun / "results" / "001-DiT-T-4", tmp_path / "whole" / "000-DiT-T-4"))
    assert all(torch.equal(value, load_file(theirs)[key])
               for key, value in load_file(ours).items())
    average = checkpoint.read_metadata(ours)["average"]
    assert not average["warm_up"] and average["initial_share"] == pytest.approx(0.9 ** 3)


def test_the_documents_list_the_flags_that_a_resumed_run_may_change():
    text = (ROOT / "docs" / "cluster.md").read_text()
    rows = text[text.index("What a resumed run may change"):].split("\n\n")[1]
    assert set(re.findall(r"`(--[\w-]+)`", rows)) == {
        flag_of(name) for name in run_identity.FREE_FLAGS}


def test_data_that_changed_in_its_place_is_an_error(begun):
    path = begun / "data" / "manifest.json"
    content = json.loads(path.read_text())
    train_entries = [entry for entry in content["volumes"] if entry["split"] == "train"]
    train_entries[0]["class"] = 1 - train_entries[0]["class"]
    path.write_text(json.dumps(content))
    done = train(*flags("data", "vae", "base.safetensors", 3), cwd=begun, expect=2)
    assert "--resume auto: the mosaics or their classes changed since" in error_line(done)


def test_content_is_by_checksums_alone():
    metadata = {"header": {"size": 3}, "vae": {"sha256": "v", "path": "/a"},
                "begun_from": {"sha256": "b", "path": "/b"}, "data_key": "d", "step": 1}
    moved = metadata | {"vae": {"sha256": "v", "path": "/c"}, "begun_from": {"sha256": "b"}}
    assert run_identity.content_of(metadata) == run_identity.content_of(moved)
    other = metadata | {"data_key": "e"}
    assert run_identity.content_of(metadata) != run_identity.content_of(other)
    assert run_identity.content_of({"begun_from": None})["begun_from"] is None


def test_which_flags_make_a_run(tmp_path):
    ours = {"lr": 1, "data_path": "a", "accum": 2, "max_steps": 9, "lr_schedule": "constant"}
    assert run_identity.differing_flags(ours, ours | {"data_path": "b", "accum": 1}) == []
    assert run_identity.differing_flags(ours, ours | {"lr": 2, "max_steps": 8}) == ["lr"]
    cosine = ours | {"lr_schedule": "cosine"}
    assert run_identity.differing_flags(cosine, cosine | {"max_steps": 8}) == ["max_steps"]
    assert run_identity.differing_flags(ours, []) == ["lr", "lr_schedule"]
    for warm_up, differing in ((True, []), (False, ["ema_warmup"])):  # runs before there was one
        assert run_identity.differing_flags(ours | {"ema_warmup": warm_up}, ours) == differing
    os.symlink(tmp_path, tmp_path / "link")
    assert run_identity.has_same_paths({"data_path": str(tmp_path)},
                                     {"data_path": str(tmp_path / "link")})


@pytest.mark.parametrize("changed, words", [
    ({}, "or a higher --max-steps to continue this one"),
    ({"epochs": 2.0}, "or a higher --epochs to continue this one"),
    ({"lr_schedule": "cosine"}, "or its checkpoint as --ckpt of another run"),
    ({"full_steps": 3}, "or its checkpoint as --ckpt of another run")])
def test_how_to_train_on_what_is_done(changed, words, capsys):
    """Only what would resume this run is called continuing it."""
    flags_ = {"max_steps": 9, "epochs": None, "lr_schedule": "constant", "full_steps": 0} | changed
    bookkeeping.say_that_it_is_done(SimpleNamespace(folder="r"), 9, flags_)
    line = capsys.readouterr().out
    assert "r has its 9 steps already; give --resume none for another run" in line and words in line
    is_same_run = not run_identity.differing_flags(flags_ | {"max_steps": 10}, flags_)
    assert is_same_run == ("continue" in line)


def test_a_run_without_states_goes_by_its_paths(tmp_path):
    """It was killed before it saved, and nothing but its flags is known."""
    ours = {"lr": 1, "data_path": "a"}
    Run.create(tmp_path, "DiT-T/4", ours)._lock.close()
    content = {"data_key": "d"}
    assert Run.find(tmp_path, "DiT-T/4", "auto", ours | {"data_path": "b"}, content) is None
    found = Run.find(tmp_path, "DiT-T/4", "auto", ours, content)
    assert found.folder.name == "000-DiT-T-4"


def test_a_second_job_says_that_the_first_is_running(tmp_path):
    flags_ = {"lr": 1, "data_path": "a"}
    Run.create(tmp_path, "DiT-T/4", flags_)
    note = resume._why_new(tmp_path, flags_, {"data_key": "d"})
    assert "another job is writing to" in note


def test_a_copy_of_the_data_with_other_covariates_is_named(tmp_path):
    flags_ = {"lr": 1, "data_path": "a"}
    run = Run.create(tmp_path, "DiT-T/4", flags_)
    metadata = {"data_key": "d", "covariates": {"sha256": "1"}, "begun_from": None,
                "vae": {"sha256": "v"}}
    checkpoint.save_checkpoint(run.checkpoints / "0000001.state.safetensors",
                               {**metadata, "step": 1}, ema={"a": torch.zeros(1)})
    content = run_identity.content_of(metadata)
    assert "another job" in resume._why_new(tmp_path, flags_, content)
    note = resume._why_new(tmp_path, flags_ | {"data_path": "b"}, content | {"covariates": "2"})
    assert note == f"a new run: it differs from {run.folder} in the covariates of the volumes"


def test_base_weights_that_moved(data, vae_folder, pretrained, finetuned, tmp_path):
    """A checkpoint whose base is elsewhere: the error names --base, and train.py has it."""
    path = tmp_path / "own" / "c.safetensors"
    path.parent.mkdir()
    metadata = dict(checkpoint.read_metadata(finetuned / "checkpoints" / "0000004.safetensors"))
    metadata["base"] = dict(metadata["base"], path="/nowhere/b.safetensors", name="b.safetensors")
    tensors = load_file(finetuned / "checkpoints" / "0000004.safetensors")
    groups = {g: {k.removeprefix(f"{g}."): v for k, v in tensors.items() if k.startswith(g + ".")}
              for g in ("ema", "raw")}
    for key in ("format", "version", "mosaicdit_version", "sha256"):
        metadata.pop(key)
    checkpoint.save_checkpoint(path, metadata, **groups)
    args = [path if a == "none" else a for a in TRAIN]
    command = ("--data-path", data, "--vae", vae_folder, "--results-dir", tmp_path / "r",
               "--gamma-blocks", 2, "--max-steps", 1, *args)
    done = train(*command, expect=2)
    assert "needs its base weights b.safetensors" in error_line(done)
    assert "give their path with --base FILE" in error_line(done)
    base = pretrained / "checkpoints" / "0000002.safetensors"
    train(*command, "--base", base)
    done = train(*command[:-len(args)], *finetune_flags(pretrained), "--base", "x.pt", expect=2)
    assert "holds the whole model; leave --base out" in error_line(done)


def test_recorded_content_of_damaged_states(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert run_folder.recorded_content(tmp_path) is None
    (tmp_path / "checkpoints" / "0000002.state.safetensors").write_bytes(b"cut")
    assert run_folder.recorded_content(tmp_path) is None
    with pytest.raises(UserError, match="none of its states"):
        Run(tmp_path).newest_state()
