"""What a checkpoint, a manifest or a table claims, and what they call things, as users meet it."""
import csv
import json
import os
import re
import shutil

import pytest
from helpers import AFFINE, GOLDEN, brain, error_line, random_vae, save_nifti, script
from safetensors.torch import load_file

from metrics import evaluation
from mri import manifest, tables
from mri.origin import read_origin
from training import base_weights, checkpoint, pretrained
from utils.errors import UserError

SAMPLING = ("--num-samples", 1, "--sampler", "dpm++", "--num-sampling-steps", 2, "--device", "cpu")
EVIL = "\x1b[31mAD\u202e\n<script>alert(1)</script>|`**x**`"
SHOWN = "\\x1b[31mAD\\u202e\\n<script>alert(1)</script>|`**x**`"


def rewrite(source, path, **changes):
    """A checkpoint with the same tensors and other metadata, and the checksum that belongs to it.

    :param changes: key = its new value, or a function of the old one
    """
    metadata = json.loads(json.dumps(checkpoint.read_metadata(source)))
    for key, value in changes.items():
        metadata[key] = value(metadata[key]) if callable(value) else value
    groups = {}
    for key, tensor in load_file(source).items():
        group, name = key.split(".", 1)
        groups.setdefault(group, {})[name] = tensor
    for key in ("format", "version", "mosaicdit_version", "sha256"):
        metadata.pop(key)
    path.parent.mkdir(exist_ok=True)
    checkpoint.save_checkpoint(path, metadata, **groups)
    return path


@pytest.fixture
def ckpt(finetuned):
    return finetuned / "checkpoints" / "0000004.safetensors"


def sample(path, tmp_path, *more, expect=0):
    return script("sample.py", "--ckpt", path, "--output", tmp_path / "s", *SAMPLING, *more,
                  expect=expect)


# ----------------------------------------------------------------------------- recorded in a file

@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "link"])
def test_recorded_base_weights_that_never_end(ckpt, tmp_path, kind):
    target = tmp_path / "base.safetensors"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "link":
        target.symlink_to("/dev/zero")
    else:
        target = kind
    path = rewrite(ckpt, tmp_path / "c" / "a.safetensors", base=lambda base: {
        **base, "path": str(target), "name": "nowhere.safetensors"})
    line = error_line(sample(path, tmp_path, expect=2))
    assert "needs its base weights nowhere.safetensors, not found at" in line
    assert "--base FILE" in line


def test_recorded_paths_are_printed_and_give_way_to_flags(ckpt, pretrained, vae_folder, tmp_path):
    base = pretrained / "checkpoints" / "0000002.safetensors"
    done = sample(ckpt, tmp_path)
    assert f"base weights: {base}, recorded in {ckpt}; --base names others" in done.stderr
    assert f"VAE: {vae_folder}, recorded in {ckpt}; --vae names another" in done.stderr
    other = shutil.copy(base, tmp_path / "other.safetensors")
    path = rewrite(ckpt, tmp_path / "c" / "a.safetensors",
                   base=lambda recorded: {**recorded, "path": "/dev/zero"},
                   vae=lambda recorded: {**recorded, "path": "/dev"})
    done = sample(path, tmp_path / "2", "--base", other, "--vae", vae_folder)
    assert "recorded in" not in done.stderr
    assert (tmp_path / "2" / "s" / "nifti" / "000000.nii.gz").is_file()


@pytest.mark.parametrize("label", ["4", "e", "cohort"])
def test_more_class_names_than_classes(ckpt, tmp_path, label):
    """The model has 2 classes."""
    path = rewrite(ckpt, tmp_path / "c" / "a.safetensors", class_counts=[1, 1, 1, 1, 1],
                   header=lambda header: {**header, "classes": list("abcde")})
    line = error_line(sample(path, tmp_path, "--class-label", label, expect=2))
    assert f"--class-label {label}: {path} names 5 classes, but its model has 2" in line
    sample(path, tmp_path, "--class-label", "b")


def test_a_header_of_other_mosaics(ckpt, tmp_path):
    header = manifest.read_manifest(GOLDEN / "v2" / "data")[0] | {"size": 32, "grid": 4}
    path = rewrite(ckpt, tmp_path / "c" / "a.safetensors", header=header)
    line = error_line(sample(path, tmp_path, expect=2))
    assert "its model makes mosaics of 48 pixels, its header describes 128" in line


@pytest.mark.parametrize("changes", [
    dict(step=-1), dict(step=10 ** 40), dict(step=True), dict(log_sums=["x"]), dict(log_count=-1),
    dict(skipped=2 ** 80), dict(identity=[1])], ids=str)
def test_metadata_that_no_run_writes(ckpt, tmp_path, changes):
    path = rewrite(ckpt, tmp_path / "c" / "a.safetensors", **changes)
    with pytest.raises(UserError, match=f"metadata is damaged \\({next(iter(changes))}\\)"):
        checkpoint.read_metadata(path)


def test_a_class_table_that_takes_gigabytes(pretrained_weights):
    config = {"num_classes": 10 ** 7, "gamma_blocks": 0, "hidden_size": 64}
    with pytest.raises(UserError, match="--num-classes 10000000: the class table would take"):
        base_weights.fit_base(pretrained_weights, config)


@pytest.fixture
def pretrained_weights(ckpt):
    return pretrained.load_weights(ckpt)


@pytest.mark.parametrize("sizes", [(64, 0), (0, 2), (-64, 2), (10 ** 40, 2), ("64", 2),
                                   (True, True)], ids=str)
def test_a_transformer_folder_of_impossible_sizes(tmp_path, sizes):
    config = dict(_class_name="DiTTransformer2DModel", sample_size=sizes[0], patch_size=sizes[1])
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(GOLDEN / "v2" / "base.safetensors",
                tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match="its sample_size and patch_size"):
        pretrained.load_weights(tmp_path)


@pytest.mark.parametrize("samples", [
    [{"id": "../x"}], [{"id": "a", "class": -1}], [{"id": "a", "class": 99}], [{"id": 5}], [7],
    [{"id": "a\x1b"}]], ids=str)
def test_a_samples_list_that_sample_does_not_write(tmp_path, samples):
    content = json.loads((GOLDEN / "v2" / "samples" / "samples.json").read_text())
    (tmp_path / "samples.json").write_text(json.dumps(content | {"samples": samples}))
    with pytest.raises(UserError, match="damaged \\(bad `samples`\\)"):
        read_origin(tmp_path)


@pytest.mark.parametrize("change", [{"sets": [1]}, {"sets": {"real": 5}}, {"settings": None}],
                         ids=str)
def test_metrics_json_that_is_no_evaluation(tmp_path, change):
    content = {"format": evaluation.FORMAT, "sets": {}, "settings": {}}
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert evaluation.is_evaluation(tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps(content | change))
    assert not evaluation.is_evaluation(tmp_path)


def test_a_table_of_few_bytes_and_many_cells(tmp_path):
    """A short row gets every column of the header: 400 kB would be 10^10 cells."""
    path = tmp_path / "a.tsv"
    path.write_text("\t".join(map(str, range(10 ** 5))) + "\n" + "a\n" * 10 ** 5)
    with pytest.raises(UserError, match="more than the 5000000 cells that are read"):
        tables.read_table(path)


# ------------------------------------------------------------------------- what things are called

def assert_plain(done):
    """Nothing that a terminal obeys was printed."""
    for text in (done.stdout, done.stderr):
        assert all(sign.isprintable() or sign in "\n\t\r" for sign in text), repr(text)
        assert "\u202e" not in text


def test_class_names_on_the_terminal(ckpt, tmp_path):
    path = rewrite(ckpt, tmp_path / "c" / "a\x1b[5m.safetensors",
                   header=lambda header: {**header, "classes": [EVIL, "CN"]})
    done = sample(path, tmp_path)
    assert_plain(done)
    assert f"class 0 ({SHOWN})" in done.stdout and "a\\x1b[5m.safetensors" in done.stdout
    done = sample(path, tmp_path, "--class-label", "x\x1b[31m", expect=2)
    assert_plain(done)
    assert f"0 ({SHOWN})" in error_line(done) and "x\\x1b[31m" in error_line(done)


def test_names_of_scans_classes_and_columns(tmp_path):
    scans = tmp_path / "s\x1b[2J"
    names = ["a\x1b[31m", "b\u202e", "=cmd"]
    for i, name in enumerate(names):
        save_nifti(scans / f"{name}.nii", brain(seed=i), AFFINE)
    (scans / "broken\x1b]0;x\x07.nii").write_bytes(b"nothing of the kind")
    done = script("preprocess.py", "--input", scans, "--output", tmp_path / "d\x9b", "--size", 16,
                  "--workers", 1, "--split", "1:1", expect=1)
    assert_plain(done)
    assert "broken\\x1b]0;x\\x07.nii" in done.stderr
    folder = tmp_path / "d\x9b"
    text = (folder / "qc" / "qc.tsv").read_text()
    assert all(sign.isprintable() or sign in "\n\t" for sign in text)
    rows = list(csv.reader(text.splitlines(), delimiter="\t"))
    assert not [cell for row in rows for cell in row if cell[:1] in "=+-@" and cell]
    done = script("postprocess.py", "--input", folder, "--output", tmp_path / "n\x1b[1m")
    assert_plain(done)


def test_a_report_carries_no_html_but_its_own(tmp_path):
    """A samples folder with hostile names in its recipe, classes and files, through evaluate.py."""
    folder = shutil.copytree(GOLDEN / "v2" / "data", tmp_path / "<img src=x>")
    content = json.loads((folder / "manifest.json").read_text())
    content["classes"] = [EVIL, *content["classes"][1:]]
    for volume in content["volumes"]:
        volume["class"] = 0
    (folder / "manifest.json").write_text(json.dumps(content))
    done = script("evaluate.py", "--real", folder, "--real-split", "all", "--synthetic", folder,
                  "--synthetic-split", "all", "--by-class", "--metrics", "mmd", "--bootstrap", 0,
                  "--permutations", 0, "--output", tmp_path / "e", "--device", "cpu")
    assert_plain(done)
    text, page = ((tmp_path / "e" / name).read_text() for name in ("report.md", "report.html"))
    assert "<script" not in text
    own = {'<script>', '<script type="application/json" id="viewer-description">'}
    for opened in re.findall("<script[^>]*>", page):
        assert opened in own or re.fullmatch(r'<script type="text/plain" id="[\w-]+">', opened)
    for part in (text, page):
        assert "<script>alert" not in part and "<img src=x" not in part and "\x1b" not in part
        assert "&#60;script&#62;alert(1)&#60;/script&#62;&#124;&#96;&#42;&#42;x" in part
    assert json.loads((tmp_path / "e" / "metrics.json").read_text())["by_class"][EVIL]


def test_a_vae_of_16384_channels(ckpt, tmp_path):
    vae = random_vae(tmp_path / "v")
    config = json.loads((vae / "config.json").read_text())
    config["block_out_channels"] = [16384] * 3
    (vae / "config.json").write_text(json.dumps(config))
    line = error_line(sample(ckpt, tmp_path, "--vae", vae, expect=2))
    assert f"{vae}/config.json: not the config of an AutoencoderKL (bad `block_out" in line
