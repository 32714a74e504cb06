"""Covariates from a table to samples, through the scripts as a user runs them."""
import ast
import json
import math
import re
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import original_dit
import pytest
import slurm_cluster
import torch
from helpers import error_line, finetune_flags, script
from safetensors import safe_open
from safetensors.torch import load_file

import train_refiner
from benchmarks import sampler_comparison
from mri import manifest, mosaic_files, tables
from sample import Plan
from training import (
    base_weights,
    checkpoint,
    checkpoint_choice,
    conditions,
    pretrained,
    refiner_pairs,
)
from training.class_choice import COHORT, ClassChoice
from training.condition_choice import ConditionChoice, describe_row

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


def test_all_kinds_of_options_resume_exactly_with_covariates(train, tmp_path):
    """Interrupted within the steps that leave out tokens; the last step is a full one."""
    flags = (*CONDITION_ON, "--tune", "lora", "--tokens", "foreground", "--lr", 0.01, "--augment",
             2, "--augment-shift", 1, "--token-route", 0.5, "--full-steps", 1, "--grad-checkpoint",
             2, "--accum", 2)
    _, whole = train(tmp_path / "a", *flags, "--max-steps", 4)
    more = (*flags, "--val-every", 1, "--sample-every", 3, "--keep", 9)
    _, parts = train(tmp_path / "b", *more, "--max-steps", 4)
    for name in ("0000004", "0000004.state", "0000003.state"):
        (parts / "checkpoints" / f"{name}.safetensors").unlink()
    done, _ = train(tmp_path / "b", *more, "--max-steps", 4)
    assert "resumes at step 2" in done.stdout
    first, second = (load_file(folder / "checkpoints" / "0000004.state.safetensors")
                     for folder in (whole, parts))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    log = [json.loads(line) for line in (parts / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in log if "held_out_loss" in e] == [1, 2, 3, 4]
    metadata = checkpoint.read_metadata(parts / "checkpoints" / "0000004.safetensors")
    assert metadata["lora"]["rank"] == 8 and metadata["config"]["covariates"] == [0, 2]
    # read as --ckpt of a run without covariates
    path = parts / "checkpoints" / "0000004.safetensors"
    done, _ = train(tmp_path / "c", "--ckpt", path, "--max-steps", 1)
    assert "its embedder of covariates is not used" in done.stdout


def test_previews_have_the_covariates_of_a_training_volume(run, train, tmp_path):
    """They are sample 0 of sample.py, and change nothing of the training."""
    _, shown = train(tmp_path / "r", *CONDITION_ON, "--max-steps", 4, "--lr", 0.05,
                     "--sample-every", 4)
    plain, other = (load_file(folder / "checkpoints" / "0000004.state.safetensors")
                    for folder in (run, shown))
    assert plain.keys() == other.keys()
    assert all(torch.equal(plain[key], other[key]) for key in plain)
    sample(run, tmp_path / "s", "--num-samples", 1, "--conditions", "cohort",
           "--sampler", "ddpm", "--num-sampling-steps", 50)
    preview = (shown / "samples" / "0000004.png").read_bytes()
    assert preview == (tmp_path / "s" / "mosaics" / "000000.png").read_bytes()
    row = json.loads((tmp_path / "s" / "samples.json").read_text())["samples"][0]["condition"]
    log = (shown / "log.txt").read_text()
    assert f"--sample-every: previews have class all and {describe_row(row)}, those" in log
    assert "previews have" not in (run / "log.txt").read_text()


def test_the_refiner_is_given_each_volumes_own(run, folder, data, vae_folder, tmp_path):
    flags = ("--ckpt", run, "--pairs", 4, "--max-steps", 1, "--batch-size", 1, "--crop", 12,
             "--num-sampling-steps", 10, "--precision", "fp32", "--device", "cpu")
    script("train_refiner.py", "--data-path", folder, *flags, "--output", tmp_path / "r")
    done = script("train_refiner.py", "--data-path", data, *flags, "--output", tmp_path / "x",
                  expect=2)
    assert f"{data}: lacks the covariates age, sex that" in error_line(done)
    args = SimpleNamespace(
        data_path=folder, ckpt=run, base=None, vae=vae_folder, device="cpu", precision="fp32",
        timesteps=(40, 220), num_sampling_steps=10)
    read = train_refiner.read_data(folder, 4, seed=0)
    vae, denoiser = train_refiner.load_models(args, read)
    inputs = train_refiner.make_pairs(args, read, read.train, vae, denoiser, 4, seed=0).inputs[-4:]
    _, moments = refiner_pairs.round_trips(
        vae, mosaic_files.read_mosaics(folder, read.header, read.train), read.header)
    own = torch.tensor([[(e["covariates"].get("age", math.nan) - age_of(run).mean)
                         / age_of(run).deviation, "FM".index(e["covariates"]["sex"])]
                        for e in read.train])
    found = {name: refiner_pairs.resampled(
        denoiser.model, vae, moments, np.zeros(len(own), int), 4, denoiser.steps,
        header=read.header, num_steps=10, seed=0, precision="fp32", covariates=values)[0]
        for name, values in (("own", own), ("missing", torch.full_like(own, math.nan)))}
    assert np.array_equal(inputs, found["own"]) and not np.array_equal(inputs, found["missing"])


def age_of(run):
    path = checkpoint_choice.choose_checkpoint(run).path
    return conditions.recorded_conditions(checkpoint.read_metadata(path), path).columns[0]


# ---------------------------------------------------------------------------------------- sampling

def test_samples_differ_by_what_is_asked_and_say_it(run, tmp_path):
    nothing, plain = sample(run, tmp_path / "a", "--num-samples", 2)
    done, asked = sample(run, tmp_path / "b", "--num-samples", 2, "--condition", "age=80", "sex=F")
    hint = "no covariates are asked for: such samples may be averages"
    assert nothing.stderr.count(hint) == 1 and hint not in done.stderr
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
    done, drawn = sample(run, tmp_path / "c", "--num-samples", 3, "--conditions", "cohort")
    assert "no covariates are asked for" not in done.stderr
    rows = json.loads((tmp_path / "c" / "samples.json").read_text())["samples"]
    assert len(drawn) == 3 and all(row["condition"].get("sex") in ("F", "M") for row in rows)


def test_a_sweep_is_of_one_class():
    """Drawn as the training set is made up, the class stays what it is for the first sample."""
    swept = ConditionChoice(rows=tuple({"age": 60 + i} for i in range(20)), swept="age")
    classes = {}
    for name, choice in (("swept", swept), ("not swept", ConditionChoice())):
        plan = Plan({}, {}, 3, "fp32", ClassChoice(COHORT, (1, 1)), choice, 20, "", None)
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


def test_checkpoints_of_a_run_are_sampled_as_in_training(run, folder, tmp_path):
    own = shutil.copytree(run, tmp_path / "run")
    (own / "checkpoints" / "0000002.safetensors").unlink()      # one to sample is enough
    done = script("evaluate.py", "--ckpt-folder", own, "--real", folder, "--real-split", "train",
                  "--train", folder, "--output", tmp_path / "e", "--num-samples", 2, "--sampler",
                  "ddim", "--num-sampling-steps", 2, "--device", "cpu", "--slices", 1)
    assert "covariates as in training" in done.stdout
    recorded = json.loads((tmp_path / "e" / "samples" / "0000004" / "samples.json").read_text())
    assert recorded["recipe"]["conditions"] == "cohort"
    assert ("2 samples each. Each sample was asked to have the covariates `age` and `sex` of a "
            "random training volume of its class.") in (tmp_path / "e" / "report.md").read_text()


def test_samplers_are_compared_on_covariates_as_in_training(run, tmp_path):
    _, expected = sample(run, tmp_path / "s", "--num-samples", 2, "--conditions", "cohort")
    trained = sampler_comparison.load(run / "checkpoints" / "0000004.safetensors", base=None,
                                      vae_name=None, device="cpu", precision="fp32", compiled=False)
    drawn = sampler_comparison.draw(trained, "dpm++", 3, 2, seed=0)
    assert np.abs(drawn / 255 - np.array(expected)).max() <= 1.01 / 255
    assert trained.conditions.describe() == "covariates as in training"


# ------------------------------------------------------------------------------------------ export

@pytest.fixture(scope="module")
def adapted(train, tmp_path_factory):
    """A run of --tune lora with covariates."""
    results = tmp_path_factory.mktemp("adapted")
    return train(results, *CONDITION_ON, "--tune", "lora", "--max-steps", 2, "--lr", 0.05)[1]


def export(run, output, *args, **kwargs):
    return script("export.py", "--ckpt", run, "--output", output, *args, **kwargs)


def inputs():
    torch.manual_seed(1)
    return torch.randn(3, 5, 12, 12), torch.tensor([0, 400, 999]), torch.tensor([0, 1, 2])


def outputs_of(run, row):
    """Of a run's model, asked for a row of age and sex; the last sample is of the null class."""
    path = checkpoint_choice.choose_checkpoint(run).path
    model, metadata = pretrained.restore_model(path)
    columns = conditions.recorded_conditions(metadata, path).columns
    with torch.no_grad():
        return model(*inputs(), conditions.encode(columns, [row] * 3, "test"))


def is_close(ours, theirs):
    return (ours - theirs).abs().max() <= 1e-6 * ours.abs().max()


@pytest.mark.parametrize(("asked", "row", "words"), [
    (("age=70", "sex=F"), [70, "F"], "age=70 sex=F"),
    (("sex=M",), [None, "M"], "sex=M, age missing"),
    ((), [None, None], "age and sex missing")])
def test_dit_holds_one_choice_of_covariates(run, tmp_path, asked, row, words):
    flags = ("--condition", *asked) if asked else ()
    done = export(run, tmp_path / "a", "--format", "dit", "--repo", *flags)
    state = torch.load(tmp_path / "a" / "DiT-T-4-48x48.pt", weights_only=True)
    assert {k: tuple(v.shape) for k, v in state.items()} == original_dit.shapes(384, 4, 4, 5, 2, 3)
    theirs = original_dit.forward(state, *inputs(), heads=6)
    assert is_close(outputs_of(run, row), theirs)
    assert not is_close(outputs_of(run, [61, "M"]), theirs)
    card, config = ((tmp_path / "a" / name).read_text() for name in ("README.md", "config.json"))
    assert f"holds one choice of covariates ({words}), " in done.stderr
    assert f"here {words} |" in card and f"one choice of covariates ({words}), " in card
    config = json.loads(config)
    assert "covariates" not in config["model"]
    assert config["condition"] == {k: v for k, v in zip(("age", "sex"), row) if v is not None}


def check_lines(card, run, folder):
    """That the code of a model card builds what the run's model computes."""
    lines = [line[4:] for line in card.splitlines() if line.startswith("    ")]
    names = {}
    exec("\n".join(lines).replace("FOLDER", str(folder)), names)
    (row,) = ast.literal_eval(re.search(r"encode\(columns, (\[\[.*\]\])", card)[1])
    with torch.no_grad():
        asked, nothing = names["conditioned"](*inputs()), names["model"](*inputs())
    assert None not in row and is_close(outputs_of(run, row), asked)
    assert is_close(outputs_of(run, [None, None]), nothing) and not is_close(nothing, asked)


def test_safetensors_hold_the_embedder(run, folder, tmp_path):
    done = export(run, tmp_path / "a", "--format", "safetensors", "--repo")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    columns = manifest.read_manifest(folder)[0]["covariates"]
    assert config["covariates"] == columns and "condition" not in config
    with safe_open(tmp_path / "a" / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["covariates"]) == columns
    assert "the training volumes' rows, which the checkpoint holds, are not" in done.stderr
    assert '"rows"' not in json.dumps(config)
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"| covariates | {age_of(run).describe()}; sex F, M |" in card
    check_lines(card, run, tmp_path / "a")
    weights = pretrained.load_weights(tmp_path / "a" / "model.safetensors")
    assert "its embedder of covariates is not used" in base_weights.describe_changes(
        weights, {"num_classes": 2})[-1]


def test_peft_holds_the_embedder(adapted, tmp_path):
    pytest.importorskip("peft", reason="needs the library peft (requirements-dev.txt)")
    export(adapted, tmp_path / "a", "--format", "peft", "--repo")
    base = checkpoint.read_metadata(adapted / "checkpoints" / "0000002.safetensors")["base"]
    card = (tmp_path / "a" / "README.md").read_text()
    check_lines(card.replace(f"weights/{base['name']}", base["path"]), adapted, tmp_path / "a")


def test_choices_that_cannot_be_exported(run, adapted, finetuned, tmp_path):
    for ckpt, flags, message in (
            (run, ("--format", "safetensors"), "--format safetensors holds the embedder, which"),
            (adapted, ("--format", "peft"), "--format peft holds the embedder, which"),
            (finetuned, ("--format", "dit"), "--condition: the model of"),
            (finetuned, ("--format", "safetensors"), "takes no covariates")):
        done = export(ckpt, tmp_path / "x", *flags, "--condition", "age=70", expect=2)
        assert message in error_line(done) and not (tmp_path / "x").exists()
    done = export(run, tmp_path / "x", "--format", "dit", "--condition", "height=3", expect=2)
    assert "it knows age" in error_line(done) and not (tmp_path / "x").exists()
    done = export(run, tmp_path / "y.pt", "--format", "dit", "--condition", "age=100")
    assert "outside the training volumes' range" in done.stderr
