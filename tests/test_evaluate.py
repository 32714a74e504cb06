"""evaluate.py as a user runs it, on folders of small cubes."""
import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import error_line, related, script
from PIL import Image
from scipy import stats

from diffusion import vae as latents
from metrics import mmd, ms_ssim, resampling, uncertainty
from mri import manifest, mosaic, mosaic_files, nifti
from reporting.structures import main_entries
from utils.version import __version__

SIDE = 16
AFFINE = np.diag([2.0, 2.5, 3.0, 1.0])


def cubes(folder, array, names=None):
    """Writes (N, D, D, D) uint8 as NIfTIs, as postprocess.py does."""
    folder.mkdir(parents=True)
    for i, v in enumerate(array):
        name = names[i] if names else f"v{i:02d}"
        nifti.write_nifti(folder / f"{name}.nii.gz", v, AFFINE)
    return folder


def data_folder(folder, array, subjects, splits, layout="rgb"):
    """Writes (N, D, D, D) uint8 as a data folder, as preprocess.py does."""
    side = array.shape[1]
    header = dict(size=side, layout=layout, grid=mosaic.grid_size(side, layout), fit="stretch",
                  window_percentiles=[0, 99.9], affine=AFFINE.tolist(), source_shape=[side] * 3,
                  source_affine=AFFINE.tolist(), classes=["all"])
    (folder / "mosaics").mkdir(parents=True)
    entries = []
    for i, (v, subject, split) in enumerate(zip(array, subjects, splits)):
        entries.append({"id": f"m{i:02d}", "subject": subject, "source": f"m{i:02d}.nii.gz",
                        "shape": [side] * 3, "affine": AFFINE.tolist(), "window": [0, 1],
                        "class": 0, "split": split})
        path = folder / "mosaics" / f"m{i:02d}.png"
        mosaic_files.write_mosaic(path, mosaic.tile(v, layout))
    manifest.write_manifest(folder, header, entries)
    return folder


def evaluate(output, *args, **options):
    done = script("evaluate.py", "--output", output, "--device", "cpu", "--bootstrap", 40, *args,
                  **options)
    return json.loads((output / "metrics.json").read_text()), done


@pytest.fixture(scope="module")
def arrays():
    """Real, synthetic and training volumes; the second synthetic one is a copy of the third
    training one."""
    v = (related(23, SIDE, seed=3) * 255).astype(np.uint8)
    real, fake, train = v[:8], v[8:16].copy(), v[16:]
    fake[1] = train[2]
    return real, fake, train


@pytest.fixture(scope="module")
def folders(arrays, tmp_path_factory):
    root = tmp_path_factory.mktemp("cubes")
    real, fake, train = arrays
    subjects = [f"t{i}" for i in range(7)] + ["a", "a", "b", "c", "d", "e", "f", "t0"]
    both = data_folder(root / "data", np.concatenate([train, real]), subjects,
                       ["train"] * 7 + ["test"] * 8)
    return both, cubes(root / "fake", fake)


@pytest.fixture(scope="module")
def whole(folders, vae_folder, inception_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "e"
    content, done = evaluate(
        output, "--real", folders[0], "--synthetic", folders[1], "--train", folders[0],
        "--vae", vae_folder, "--inception-weights", inception_file)
    return output, content, done


# --------------------------------------------------------------------------------------- numbers
# Each against an independent computation on the same volumes.

def test_ms_ssim(whole, arrays):
    real, fake, _ = arrays
    m = whole[1]["metrics"]
    within = m["ms_ssim"]
    assert np.isclose(within["value"], ms_ssim.ms_ssim_pairs(fake).mean())
    assert within["protocol"] == "kwon2019"
    pairs = ms_ssim.all_pairs(8)[1:]  # without the two volumes of subject "a"
    assert np.isclose(within["target"]["value"], ms_ssim.ms_ssim_pairs(real, pairs=pairs).mean())
    assert within["pairs"] == {"real": 27, "synthetic": 28, "vae rgb": 27, "vae gray": 27}
    difference = within["value"] - within["target"]["value"]
    assert np.isclose(m["ms_ssim_difference"]["value"], difference)


def test_mmd(whole, arrays):
    m = whole[1]["metrics"]
    x, y = (v.reshape(len(v), -1) / 255 for v in arrays[:2])
    linear = ((x.mean(0) - y.mean(0)) ** 2).sum()
    assert np.isclose(m["mmd_linear"]["value"], linear)
    of_subjects = np.concatenate([x[:2].mean(0, keepdims=True), x[2:]])  # each counts once
    between = (of_subjects @ of_subjects.T)[~np.eye(7, dtype=bool)].mean()
    others = (y @ y.T)[~np.eye(8, dtype=bool)].mean()
    expected = between + others - 2 * of_subjects.mean(0) @ y.mean(0)
    assert np.isclose(m["mmd_linear_unbiased"]["value"], expected)
    both = np.concatenate([x, y])
    distances = mmd.squared_distances(both @ both.T)
    median = np.median(distances[np.triu_indices(16, 1)])
    assert np.isclose(m["mmd_rbf"]["median_distance"] ** 2, median)


def test_fid_and_kid(whole, arrays, inception_file):
    from torchmetrics.image.fid import FrechetInceptionDistance
    real, fake, _ = arrays
    m = whole[1]["metrics"]
    for view, axis in (("a", 3), ("c", 2), ("s", 1)):
        fid = FrechetInceptionDistance(2048, feature_extractor_weights_path=str(inception_file))
        for v, is_real in ((real, True), (fake, False)):
            slices = np.rot90(np.take(v, SIDE // 2, axis), axes=(1, 2))[:, None]
            fid.update(torch.from_numpy(np.repeat(slices, 3, 1).copy()), real=is_real)
        assert np.isclose(m[f"fid_{view}"]["value"], float(fid.compute()), rtol=1e-3)
        assert len(m[f"fid_{view}"]["weights"]["sha256"]) == 64
        assert "interval" not in m[f"kid_{view}"] and 0 < m[f"kid_{view}"]["p"] <= 1
    of_features = m["coverage_inception"]
    assert 0 <= of_features["value"] <= 1 and 0 < of_features["p"] <= 1 and of_features["k"] == 5
    assert of_features["name"] == "coverage, Inception features" in (
        whole[0] / "report.md").read_text()


def test_smoothness_and_histogram(whole, arrays):
    real, fake, _ = arrays
    m = whole[1]["metrics"]
    energy = [[np.mean(np.diff(v / 255.0, axis=k) ** 2) for k in (1, 2, 3)] for v in (real, fake)]
    found = [m[f"gradient_{k}"]["value"] for k in ("right", "anterior", "superior")]
    assert np.allclose(found, np.divide(energy[1], energy[0]), rtol=1e-4)
    expected = stats.wasserstein_distance(real.ravel() / 255, fake.ravel() / 255)
    assert np.isclose(m["histogram"]["value"], expected)


def test_memorization(whole, arrays):
    real, fake, train = arrays
    m = whole[1]["metrics"]
    x, y, z = (v.reshape(len(v), -1) / 255 for v in arrays)
    nearest = np.corrcoef(np.concatenate([x, y]), z)[:16, 16:].max(1)
    of_volumes = m["nearest_correlation"]["of_volumes"]
    assert np.allclose(of_volumes["real"], nearest[:8])
    assert np.allclose(of_volumes["synthetic"], nearest[8:]) and np.isclose(nearest[9], 1)
    expected = np.mean(1 - nearest[8:] < min(1 - nearest[:8]))
    assert np.isclose(m["copied_correlation"]["value"], expected)
    assert m["copied_correlation"]["aim"] == "0.111"  # one of eight real volumes and itself
    pairs = [(i, 8 + j) for i in range(8) for j in range(7)]
    similar = ms_ssim.ms_ssim_pairs(np.concatenate([fake, train]), pairs=pairs).reshape(8, 7)
    found = m["nearest_ms_ssim"]["of_volumes"]["synthetic"]
    assert np.allclose(found, similar.max(1), atol=1e-6)
    assert m["copied_ms_ssim"]["value"] >= 1 / 8
    (copy,) = m["copies"]["flagged"]
    assert (copy["volume"], copy["source"], copy["shift"]) == ("v01", "m02", [0, 0, 0])
    assert m["copies"]["value"] == 1 / 8 and m["copies"]["planted"] == 7


def test_p(whole):
    m = main_entries(whole[1]["metrics"])
    tested = {key: e["p"] for key, e in m.items() if "p" in e}
    assert set(m) - set(tested) == {
        "ms_ssim", "mean_pair_distance", "copies"}  # the first has the p of its difference
    smallest = min(tested, key=tested.get)
    expected = min(1, len(tested) * tested[smallest])
    assert m[smallest]["p_adjusted"] == pytest.approx(expected)
    assert m["mmd_linear"]["p_method"] == "999 permutations of subjects, upper tail"
    assert not any("interval" in m[key] for key in ("mmd_linear", "mmd_rbf", "fid_a", "histogram"))


def test_intervals_hold_their_values(whole):
    entries = [e for e in whole[1]["metrics"].values() if "interval" in e]
    assert len(entries) > 10
    assert all(e["interval"][0] <= e["value"] <= e["interval"][1] for e in entries)


def test_floor_is_that_of_halves_of_the_real_set(whole, arrays):
    m, real = whole[1]["metrics"], arrays[0].reshape(8, -1) / 255
    subjects = ["a", "a", "b", "c", "d", "e", "f", "t0"]
    first, second = uncertainty.halves(subjects, resampling.SPLITS, [0, 2])
    direct = [((real[a == 1].mean(0) - real[b == 1].mean(0)) ** 2).sum()
              for a, b in zip(first, second)]
    floor = m["mmd_linear"]["floor"]
    assert np.allclose([floor["mean"], floor["low"], floor["high"]],
                       [np.mean(direct), min(direct), max(direct)])
    # fewer volumes, more bias
    assert m["mmd_linear"]["at_floor_n"]["mean"] > m["mmd_linear"]["value"]


def test_ceiling_is_what_the_vae_gives_back(whole, arrays, vae_folder):
    m, real = whole[1]["metrics"], arrays[0]
    vae = latents.load_vae(vae_folder)
    for layout in ("rgb", "gray"):
        back = []
        for v in real:
            x = latents.to_pixels(mosaic.tile(v, layout)[None])
            with torch.no_grad():
                y = vae.decode(vae.encode(x).latent_dist.mean).sample
            back.append(mosaic.untile(latents.from_pixels(y)[0], SIDE, layout))
        back = np.stack(back)
        linear = ((back.mean(0) / 255 - real.mean(0) / 255) ** 2).sum()
        assert np.isclose(m["mmd_linear"]["vae"][layout], linear, rtol=1e-4)
        similarity = ms_ssim.ms_ssim_pairs(back, pairs=ms_ssim.all_pairs(8)[1:]).mean()
        assert np.isclose(m["ms_ssim"]["vae"][layout], similarity, atol=1e-4)
        psnr = np.mean([-10 * np.log10(np.mean((a / 255 - b / 255) ** 2))
                        for a, b in zip(real, back)])
        assert np.isclose(whole[1]["vae_psnr_db"][layout], psnr, atol=1e-2)


# ---------------------------------------------------------------------------------------- output

def test_warnings_name_what_is_on_two_sides(whole):
    warnings = " ".join(whole[1]["warnings"])
    assert ("1 of 8 synthetic volumes are in the training set, voxel for voxel: v01"
            in warnings)
    assert "1 of 8 real volumes are of subjects in the training set: m14" in warnings
    assert all(f"warning: {w}" in whole[2].stdout for w in whole[1]["warnings"])


def test_settings_and_versions_are_recorded(whole):
    content = whole[1]
    assert content["mosaicdit_version"] == __version__
    assert content["settings"]["vae_layouts"] == ["rgb", "gray"]
    assert "memorization" in content["settings"]["metrics"]
    assert content["sets"]["train"]["split"] == "train" and content["sets"]["real"]["n"] == 8
    assert content["sets"]["real"]["subjects"] == 7
    assert content["sets"]["synthetic"]["voxel_mm"] == [2.0, 2.5, 3.0]


def test_report(whole):
    output, content, done = whole
    text, page = (output / "report.md").read_text(), (output / "report.html").read_text()
    for e in main_entries(content["metrics"]).values():
        assert f"| {e['name']} | **" in text and e["name"] in page
    for words in ("HA-GAN | 500 | 36.8 | 226 | 477 | 1090 | 554",
                  "finetuned DiT (the paper) | 32 | > 78.5 | 5.15 … 13.2 | 121 … 141 | 279 | 239",
                  "3D-DPM | 500 | 79.7 | 15.2 | 188 | – | –", "not comparable",
                  "fewer than 2048 images", "**Warning:**", f"MosaicDiT {__version__}"):
        assert words in text
    assert not re.search(r'(src|href)="(?!data:)', page) and "https://" not in page
    names = sorted(p.name for p in (output / "figures").iterdir())
    assert names == ["copies.png", "distances.png", "gallery.png", "intervals.png", "montage.png",
                     "nearest.png", "smoothness.png", "structures.png"]
    assert page.count("data:image/png;base64") == len(names) == text.count("](figures/")
    for name in names:
        assert np.array(Image.open(output / "figures" / name)).std() > 5
    assert re.search(r"FID-A +[\d.]+ +p [\d.]+, adjusted [\d.]+", done.stdout)
    assert "FID∞ is left out, as it needs 50 volumes in each set and the smaller one has 8" in text
    assert "**Warning: 1 of 8 synthetic volumes look like copies of one of 7 training" in text
    assert "warning: v01 looks like a copy of the training volume m02" in done.stdout


# ------------------------------------------------------------------------------------- properties

def test_equal_treatment(data, tmp_path):
    """A set against a copy of itself, once as mosaics and once as the NIfTIs that postprocess
    wrote: nothing differs."""
    script("postprocess.py", "--input", data, "--output", tmp_path / "n")
    content, _ = evaluate(tmp_path / "e", "--real", data, "--real-split", "all",
                          "--synthetic", tmp_path / "n", "--mmd-batch", 2, cwd=tmp_path)
    m = content["metrics"]
    assert m["mmd_linear"]["value"] == 0 and m["mmd_linear"]["batch"] == 2
    assert "batches of 2" in m["mmd_linear"]["name"]
    value = m["ms_ssim"]["value"]
    assert m["ms_ssim"]["target"]["value"] == pytest.approx(value, abs=1e-12)
    assert m["ms_ssim_difference"]["value"] == 0
    assert m["through_plane"]["value"] == 1 and m["histogram"]["value"] == 0
    assert "same volumes" in content["warnings"][0]
    assert "download.py inception" in content["skipped"]["FID"]
    assert "download.py inception" in (tmp_path / "e" / "report.md").read_text()
    assert "--train" in content["skipped"]["memorization"]


def test_the_same_set_has_no_distance(folders, arrays, inception_file, tmp_path):
    copy = cubes(tmp_path / "copy", arrays[0][::-1])
    content, _ = evaluate(
        tmp_path / "e", "--real", folders[0], "--synthetic", copy, "--metrics", "fid", "kid",
        "mmd", "--slices", 2, "--inception-weights", inception_file)
    m = content["metrics"]
    assert abs(m["fid_a"]["value"]) < 1e-3 * m["fid_a"]["floor"]["mean"]
    assert m["mmd_linear"]["value"] == 0 and m["kid_a"]["value"] < 0
    assert "the 2 middle slices" in m["fid_a"]["how"]
    assert content["warnings"] == ["the real and the synthetic set are the same volumes"]


def test_slices_that_flicker_show_as_roughness(arrays, tmp_path):
    """The paper finds coronal and sagittal views noisier. Synthetic volumes whose axial slices
    differ in brightness must show it."""
    real = arrays[0]
    gain = 1 + 0.3 * np.random.default_rng(0).standard_normal((8, 1, 1, SIDE))
    fake = np.clip(real * gain, 0, 255).astype(np.uint8)
    content, _ = evaluate(
        tmp_path / "e", "--real", cubes(tmp_path / "r", real),
        "--synthetic", cubes(tmp_path / "f", fake), "--metrics", "smoothness")
    m = content["metrics"]
    assert m["through_plane"]["interval"][0] > 1.5 and m["gradient_superior"]["value"] > 2
    assert 0.7 < m["gradient_right"]["value"] < 1.4
    assert 0.7 < m["gradient_anterior"]["value"] < 1.4


def test_memory_and_pairs_do_not_change_what_is_counted(arrays, tmp_path):
    real, fake, _ = arrays
    sets = ("--real", cubes(tmp_path / "r", real), "--synthetic", cubes(tmp_path / "f", fake))
    in_a_file = ("--memory-gb", 1e-5)
    a, _ = evaluate(tmp_path / "a", *sets, "--metrics", "mmd", "histogram", *in_a_file)
    b, _ = evaluate(tmp_path / "b", *sets, "--metrics", "mmd", "histogram", "ms-ssim",
                    "--pairs", 5)
    assert all(np.isclose(e["value"], b["metrics"][k]["value"], rtol=1e-12)
               for k, e in a["metrics"].items())
    found = b["metrics"]["ms_ssim"]
    assert found["pairs"] == {"real": 5, "synthetic": 5}
    assert found["available_pairs"] == {"real": 28, "synthetic": 28}
    report = (tmp_path / "b" / "report.md").read_text()
    assert "mean over at most 5 random pairs (seed 0; " in report and "takes all of them" in report
    rng, chosen = np.random.default_rng(0), {}
    for name, v in (("real", real), ("synthetic", fake)):
        order = ms_ssim.all_pairs(len(v))
        pairs = order[rng.choice(len(order), 5, replace=False)]
        chosen[name] = ms_ssim.ms_ssim_pairs(v, pairs=pairs).mean()
    assert np.isclose(found["value"], chosen["synthetic"])
    assert np.isclose(found["target"]["value"], chosen["real"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "f", "r"]


def test_mmd_in_the_range_of_3dbraingen_is_four_times_as_large(arrays, tmp_path):
    real, fake, _ = arrays
    how = ("--real", cubes(tmp_path / "r", real), "--synthetic", cubes(tmp_path / "f", fake),
           "--metrics", "mmd", "--permutations", 0)
    unit, _ = evaluate(tmp_path / "a", *how)
    signed, _ = evaluate(tmp_path / "b", *how, "--mmd-range", -1, 1)
    for key, times in (("mmd_linear", 4), ("mmd_linear_unbiased", 4), ("mean_pair_distance", 4),
                       ("mmd_rbf", 1)):
        one, other = unit["metrics"][key], signed["metrics"][key]
        assert np.isclose(other["value"], times * one["value"])
        assert one["range"] == [0, 1] and other["range"] == [-1, 1] and "p" not in one
    x, y = (v.reshape(8, -1) / 127.5 - 1 for v in (real, fake))
    signed_value = signed["metrics"]["mmd_linear"]["value"]
    assert np.isclose(signed_value, ((x.mean(0) - y.mean(0)) ** 2).sum())
    row = f"| **this evaluation**, 8 real | 8 | – | {signed_value / 1000:.4g} |"
    assert all(row in (tmp_path / name / "report.md").read_text() for name in "ab")


def test_small_volumes_and_few(tmp_path):
    """Too small for five levels, two volumes a side: what can be computed is, and nothing is made
    up. The former spelling of a metric is still accepted."""
    v = (related(4, 12) * 255).astype(np.uint8)
    content, done = evaluate(
        tmp_path / "e", "--real", cubes(tmp_path / "r", v[:2]),
        "--synthetic", cubes(tmp_path / "f", v[2:]), "--train", tmp_path / "r", "--bootstrap", 0,
        "--metrics", "ms-ssim", "mmd", "memorisation", expect=2)
    assert "--metrics ms-ssim mmd memorization: not all could be computed; MS-SSIM: " in (
        error_line(done))
    m = content["metrics"]
    assert "too small for five levels; at least 16" in content["skipped"]["MS-SSIM"]
    assert "ms_ssim" not in m and "nearest_ms_ssim" not in m
    assert m["mmd_linear"]["value"] > 0
    assert not any("interval" in e or "floor" in e for e in m.values())
    assert "--real has 2 subjects" in content["skipped"]["the floor"]
    assert m["nearest_correlation"]["of_volumes"]["real"] == pytest.approx([1, 1])
    assert ("2 of 2 real volumes are in the training set, voxel for voxel: v00, v01"
            in content["warnings"])
    assert content["settings"]["metrics"] == ["ms-ssim", "mmd", "memorization"]


# -------------------------------------------------------------------------------------- refusals

@pytest.fixture
def refused(tmp_path):
    """Runs evaluate.py, which must fail and leave nothing; its error."""
    def run(real, synthetic, *args):
        done = script("evaluate.py", "--real", real, "--synthetic", synthetic,
                      "--output", tmp_path / "o", *args, expect=2)
        assert not (tmp_path / "o").exists()
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
        return error_line(done)
    return run


def test_refuses_flags(data, folders, scans, refused, tmp_path):
    fake = folders[1]
    assert "no such folder" in refused(tmp_path / "none", fake)
    assert "not a cube; `python preprocess.py --input" in refused(data, scans)
    assert ("not a data folder and has no splits"
            in refused(data, fake, "--synthetic-split", "test"))
    assert "--mmd-batch 9: the smaller set has" in refused(data, fake, "--mmd-batch", 9)
    assert "--slices 17: the volumes have 16" in refused(data, fake, "--slices", 17)
    assert "--pairs 0: must be at least 1" in refused(data, fake, "--pairs", 0)
    assert "'some': must be a whole number" in refused(data, fake, "--pairs", "some")
    assert ("--precision has no effect without --vae"
            in refused(data, fake, "--precision", "bf16"))
    assert ("--mmd-batch has no effect without mmd among --metrics"
            in refused(data, fake, "--mmd-batch", 2, "--metrics", "fid"))
    assert ("--inception-weights has no effect without fid or kid or coverage-2d among --metrics"
            in refused(data, fake, "--inception-weights", fake, "--metrics", "mmd"))
    assert "invalid choice: 'ssim'" in refused(data, fake, "--metrics", "ssim")
    assert "--bootstrap 1: must be 0, or at least 2" in refused(data, fake, "--bootstrap", 1)
    assert ("--permutations 5: must be 0, or at least 19"
            in refused(data, fake, "--permutations", 5))
    assert ("--mmd-range 1 -1: the first must be smaller than the second"
            in refused(data, fake, "--mmd-range", 1, -1))
    assert ("--mmd-range has no effect without mmd among --metrics"
            in refused(data, fake, "--mmd-range", -1, 1, "--metrics", "histogram"))
    (tmp_path / "w.pth").write_bytes(b"junk")
    assert ("--inception-weights"
            in refused(data, fake, "--inception-weights", tmp_path / "w.pth"))
    done = script("evaluate.py", "--real", data, "--synthetic", fake, "--output", "/proc/here",
                  "--metrics", "mmd", expect=2)
    assert "--output /proc/here: cannot be created" in error_line(done)


def test_refuses_volumes(data, arrays, refused, tmp_path):
    small = cubes(tmp_path / "small", arrays[1][:, :12, :12, :12])
    assert "volumes of 12 voxels a side" in refused(data, small)
    one = cubes(tmp_path / "one", arrays[1][:1])
    assert "holds 1 volumes; at least 2" in refused(data, one)
    broken = np.stack([arrays[1][0] / 255.0] * 2).astype(np.float32)
    broken[1, 0, 0, 0] = np.nan
    assert "1 voxels are NaN" in refused(data, cubes(tmp_path / "nan", broken))


def test_refuses_mosaics(data, refused, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(data, folder)
    first = manifest.read_manifest(folder)[1][0]["id"]
    path = folder / "mosaics" / f"{first}.png"
    Image.new("RGB", (48, 48), (9, 9, 9)).save(path)
    assert f"{first} is constant" in refused(data, folder, "--synthetic-split", "all")
    Image.new("RGB", (32, 48)).save(path)
    assert "32 x 48 RGB" in refused(data, folder, "--synthetic-split", "all")
