"""Covariates from a table to samples, through the scripts as a user runs them."""
import json

import nibabel as nib
import numpy as np
import pytest
import slurm_cluster
import torch
from helpers import error_line, finetune_flags, script
from safetensors.torch import load_file

from mri import manifest, tables
from sample import Plan
from training import checkpoint
from training.class_choice import COHORT, ClassChoice
from training.condition_choice import ConditionChoice

TABLE = "participant_id\tage\tsex\n" + "".join(
    f"sub-{s:02d}\t{age}\t{sex}\n"
    for s, (age, sex) in enumerate([(61, "F"), (70, "M"), ("n/a", "F"), (82, "M"), (75, "F")]))
CONDITION_ON = ("--condition-on", "age", "sex")
FAST = ("--sampler", "dpm++", "--num-sampling-steps", 3, "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "participants.tsv"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def folder(scans, table, tmp_path_factory):
    """A data folder with covariates, otherwise that of the fixture `data` with one class."""
    folder = tmp_path_factory.mktemp("data") / "c16"
    script("preprocess.py", "--input", scans, "--output", folder, "--size", 16, "--split", "4:1",
           "--workers", 1, "--labels", table, "--covariates", "age:years", "sex")
    return folder


@pytest.fixture(scope="module")
def train(folder, vae_folder, pretrained):
    def run(results, *args, **kwargs):
        done = script("train.py", "--data-path", folder, "--vae", vae_folder, "--results-dir",
                      results, *finetune_flags(pretrained), *args, **kwargs)
        return done, results / "000-DiT-T-4"
    return run


@pytest.fixture(scope="module")
def run(train, tmp_path_factory):
    results = tmp_path_factory.mktemp("conditioned")
    return train(results, *CONDITION_ON, "--max-steps", 4, "--lr", 0.05)[1]


def sample(run, output, *args, **kwargs):
    done = script("sample.py", "--ckpt", run, "--output", output, *FAST, *args, **kwargs)
    return done, [nib.load(path).get_fdata() for path in sorted(output.glob("nifti/*.gz"))]


# ------------------------------------------------------------------------------------- preparation

def test_the_manifest_holds_columns_and_rows(folder, scans, table, tmp_path):
    header, entries = manifest.read_manifest(folder)
    age, sex = header["covariates"]
    ages = [e["covariates"]["age"] for e in entries
            if e["split"] == "train" and "age" in e["covariates"]]
    assert (age["unit"], age["mean"]) == ("years", pytest.approx(np.mean(ages)))
    assert age["deviation"] == pytest.approx(np.std(ages)) and sex["levels"] == ["F", "M"]
    found = {e["subject"]: e["covariates"] for e in entries}
    assert found["sub-01"] == {"age": 70, "sex": "M"} and found["sub-02"] == {"sex": "F"}


def test_covariates_are_added_to_a_data_folder_that_has_none(scans, table, tmp_path):
    flags = ("--input", scans, "--output", tmp_path / "d", "--size", 16, "--workers", 1)
    script("preprocess.py", *flags)
    before = manifest.read_manifest(tmp_path / "d")
    assert "covariates" not in before[0]
    script("preprocess.py", *flags, "--labels", table, "--covariates", "age", "sex")
    header, entries = manifest.read_manifest(tmp_path / "d")
    assert [column["name"] for column in header["covariates"]] == ["age", "sex"]
    assert [{k: v for k, v in e.items() if k != "covariates"} for e in entries] == before[1]
    done = script("preprocess.py", *flags, "--labels", table, "--covariates", "weight", expect=2)
    assert "no column 'weight'" in error_line(done)


# ---------------------------------------------------------------------------------------- training

def test_the_first_loss_is_that_of_a_model_without_covariates(train, tmp_path):
    """The embedder is zero before the first step: the loss of step 1 has the same bits."""
    losses = []
    for name, flags in (("a", CONDITION_ON), ("b", ())):
        _, folder = train(tmp_path / name, *flags, "--max-steps", 1, "--log-every", 1)
        losses.append(json.loads((folder / "log.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[0] == losses[1]


def test_a_checkpoint_records_covariates_and_resuming_is_exact(run, train, tmp_path):
    flags = (*CONDITION_ON, "--lr", 0.05)
    train(tmp_path, *flags, "--max-steps", 2)
    _, parts = train(tmp_path, *flags, "--max-steps", 4)
    whole, resumed = (load_file(folder / "checkpoints" / "0000004.state.safetensors")
                      for folder in (run, parts))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    metadata = checkpoint.read_metadata(run / "checkpoints" / "0000004.safetensors")
    assert metadata["config"]["covariates"] == [0, 2]
    assert metadata["covariates"]["columns"][0]["unit"] == "years"
    assert "covariates" not in metadata["header"]
    assert "covariates: age" in (run / "log.txt").read_text()
    assert whole["raw.condition_embedder.projection"].any()
    _, other = train(tmp_path, "--condition-on", "sex", "--lr", 0.05, "--max-steps", 2)
    assert len(list(tmp_path.iterdir())) == 2    # another run


def test_options_of_memory_go_with_covariates(train, tmp_path):
    for name, flags in (("tokens", ("--tokens", "foreground")), ("accum", ("--accum", 2)),
                        ("full", ("--tune", "full", "--grad-checkpoint", 2))):
        _, folder = train(tmp_path / name, *CONDITION_ON, *flags, "--max-steps", 2)
        state = load_file(folder / "checkpoints" / "0000002.safetensors")
        assert state["raw.condition_embedder.projection"].any(), name


def test_the_dry_run_counts_them(train, tmp_path):
    done, _ = train(tmp_path, *CONDITION_ON, "--dry-run")
    # missing 2 x 16, MLP 10 x 32 + 32 x 16, table 2 x 16, projection 16 x 384
    expected = 32 + 320 + 512 + 32 + 16 * 384
    assert f"covariates      5 tensors {expected:13,} values" in done.stdout
    done, _ = train(tmp_path, "--condition-on", "height", "--dry-run", expect=2)
    assert "no such covariate; it has age, sex" in error_line(done)


def test_lora_foreground_tokens_and_held_out_loss_resume_exactly_with_covariates(train, tmp_path):
    flags = (*CONDITION_ON, "--tune", "lora", "--tokens", "foreground", "--lr", 0.01)
    _, whole = train(tmp_path / "a", *flags, "--max-steps", 4)
    train(tmp_path / "b", *flags, "--val-every", 1, "--max-steps", 2)
    _, parts = train(tmp_path / "b", *flags, "--val-every", 1, "--max-steps", 4)
    first, second = (load_file(folder / "checkpoints" / "0000004.state.safetensors")
                     for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    log = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if "held_out_loss" in e] == [1, 2, 3, 4]
    metadata = checkpoint.read_metadata(parts / "checkpoints" / "0000004.safetensors")
    assert metadata["lora"]["rank"] == 8 and metadata["config"]["covariates"] == [0, 2]
    # read as --ckpt of a run without covariates, and refused by export.py
    path = parts / "checkpoints" / "0000004.safetensors"
    done, _ = train(tmp_path / "c", "--ckpt", path, "--max-steps", 1)
    assert "what it learned of them is left out" in done.stdout
    done = script("export.py", "--ckpt", path, "--format", "peft", "--output", tmp_path / "p",
                  expect=2)
    assert "was trained on covariates" in error_line(done)


# ---------------------------------------------------------------------------------------- sampling

def test_samples_differ_by_what_is_asked_and_say_it(run, tmp_path):
    _, plain = sample(run, tmp_path / "a", "--num-samples", 2)
    _, asked = sample(run, tmp_path / "b", "--num-samples", 2, "--condition", "age=80", "sex=F")
    _, empty = sample(run, tmp_path / "c", "--num-samples", 2, "--condition", "age=", "sex=n/a")
    assert not np.array_equal(plain[0], asked[0]) and np.array_equal(plain, empty)
    content = json.loads((tmp_path / "b" / "samples.json").read_text())
    assert content["samples"][1]["condition"] == {"age": 80, "sex": "F"}
    rows = tables.read_table(tmp_path / "b" / "conditions.tsv").rows
    assert rows[1] == {"id": "000001", "age": "80.0", "sex": "F"}
    image = nib.load(tmp_path / "b" / "nifti" / "000000.nii.gz")
    assert image.header["descrip"].item().endswith(b"age=80 sex=F")
    done, _ = sample(run, tmp_path / "b", "--num-samples", 2, "--condition", "age=70", expect=2)
    assert "holds samples of conditions" in error_line(done)
    manifest.read_manifest(tmp_path / "b")


def test_a_sample_depends_on_its_row_and_seed_alone(run, tmp_path):
    table = tmp_path / "t.tsv"
    table.write_text("age\tsex\n80\tF\n61\t\n")
    _, listed = sample(run, tmp_path / "a", "--conditions", table, "--cfg-scale", 2)
    _, fixed = sample(run, tmp_path / "b", "--num-samples", 2, "--condition", "age=61",
                      "--cfg-scale", 2)
    assert np.array_equal(listed[1], fixed[1]) and not np.array_equal(listed[0], fixed[0])
    _, drawn = sample(run, tmp_path / "c", "--num-samples", 3, "--conditions", "cohort")
    rows = json.loads((tmp_path / "c" / "samples.json").read_text())["samples"]
    assert len(drawn) == 3 and all(row["condition"].get("sex") in ("F", "M") for row in rows)


def test_a_sweep_is_of_one_class():
    """Drawn as the training set is made up, the class stays what it is for the first sample."""
    swept = ConditionChoice(rows=tuple({"age": 60 + i} for i in range(20)), swept="age")
    classes = {}
    for name, conditions in (("swept", swept), ("not swept", ConditionChoice())):
        plan = Plan({}, {}, 3, "fp32", ClassChoice(COHORT, (1, 1)), conditions, 20, "", None)
        classes[name] = {plan.class_of(seed=5, i=i) for i in range(20)}
    assert classes == {"swept": {plan.class_of(seed=5, i=0)}, "not swept": {0, 1}}


def test_a_sweep_is_one_noise_and_a_picture(run, tmp_path):
    done, swept = sample(run, tmp_path / "a", "--sweep", "age=61:100:2", "--condition", "sex=F")
    _, first = sample(run, tmp_path / "b", "--num-samples", 1, "--condition", "age=61", "sex=F",
                      "--batch-size", 8)
    assert len(swept) == 2 and np.allclose(swept[0], first[0], atol=1 / 255)
    assert not np.array_equal(swept[0], swept[1])
    assert (tmp_path / "a" / "sweep.png").stat().st_size > 5000
    assert "outside the training volumes' range" in done.stderr


@pytest.mark.parametrize(("flags", "message"), [
    (("--condition", "height=3"), "it knows age"),
    (("--condition", "sex=X"), "sex F, M; 'X' is not one of these"),
    (("--sweep", "age=60:80:3", "--num-samples", 5), "leave --num-samples out"),
])
def test_unknown_names_and_levels_are_refused(run, tmp_path, flags, message):
    done, _ = sample(run, tmp_path / "s", *flags, expect=2)
    assert message in error_line(done) and not (tmp_path / "s").exists()


def test_a_model_without_covariates_is_asked_for_none(finetuned, tmp_path):
    done, _ = sample(finetuned, tmp_path / "s", "--condition", "age=70", expect=2)
    assert "takes no covariates; train one with train.py --condition-on" in error_line(done)


def test_two_processes_do_the_same_training(server, folder, vae_folder, pretrained, run, tmp_path):
    port = slurm_cluster.free_ports()
    flags = ("--data-path", folder, "--vae", vae_folder, "--results-dir", tmp_path / "r",
             *finetune_flags(pretrained), *CONDITION_ON, "--lr", 0.05, "--max-steps", 4)
    pids = [server.start("train", *flags, output=tmp_path / f"out{rank}", env=dict(
        RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        for rank in range(2)]
    assert [server.wait(pid) for pid in pids] == [0, 0]
    ours, theirs = (load_file(r / "checkpoints" / "0000004.safetensors")
                    for r in (tmp_path / "r" / "000-DiT-T-4", run))
    assert ours.keys() == theirs.keys()
    assert max((ours[key] - theirs[key]).abs().max() for key in theirs) <= 1e-3
