"""MeshNet: published files are read as tfjs reads them, and other files are refused."""
import json

import numpy as np
import pytest
import torch
from helpers import SHARED
from scipy import ndimage
from scipy.special import erf
from small_meshnets import random_meshnet, write_meshnet

from mri import meshnet
from utils.errors import UserError

NETWORKS = SHARED / "meshnet"
needs_shared = pytest.mark.skipif(not NETWORKS.is_dir(), reason=f"needs {NETWORKS}")
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "elu": lambda x: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
    "relu": lambda x: np.maximum(x, 0),
    None: lambda x: x,
}


def scores_by_scipy(volume, convolutions, weights):
    """The network's scores, (classes, X, Y, Z), from its stored kernels, in float64."""
    channels = [volume.astype(float)]
    for name, dilation, activation in convolutions:
        kernel, bias = weights[name]
        size = dilation * (kernel.shape[0] - 1) + 1
        made = []
        for out in range(kernel.shape[-1]):
            total = np.zeros(volume.shape) + (0 if bias is None else bias[out])
            for taken, channel in enumerate(channels):
                spread = np.zeros((size,) * 3)
                spread[::dilation, ::dilation, ::dilation] = kernel[..., taken, out]
                total += ndimage.correlate(channel, spread, mode="constant")
            if name.endswith("_gn"):
                total = (total - total.mean()) / np.sqrt(total.var() + 1e-5)
            made.append(ACTIVATIONS[activation](total))
        channels = made
    return np.array(channels)


@pytest.mark.parametrize("activation, normalized", [
    ("gelu", True), ("elu", False), ("relu", False), ("relu", True)])
def test_scores_are_those_of_another_implementation(tmp_path, activation, normalized):
    convolutions, weights = random_meshnet(tmp_path, activation, normalized, classes=4)
    volume = np.random.default_rng(1).random((9, 12, 11)).astype(np.float32)
    network = meshnet.load(tmp_path)
    with torch.inference_mode():
        scores = network(torch.from_numpy(volume)[None, None])[0].numpy()
    assert network.classes == 4 and scores.shape == (4, 9, 12, 11)
    expected = scores_by_scipy(volume, convolutions, weights)
    assert np.abs(scores - expected).max() < 1e-4
    assert expected.std() > 0.1
    assert meshnet.label_names(tmp_path) == ["background", "structure 1", "structure 2",
                                             "structure 3"]


@needs_shared
@pytest.mark.parametrize("name, classes", [("mindgrab", 2), ("model18cls", 18),
                                           ("model5_gw_ae", 3)])
def test_scores_are_those_of_the_published_code(name, classes):
    network = meshnet.load(NETWORKS / name)
    assert network.classes == classes
    with np.load(NETWORKS / "golden.npz") as golden, torch.inference_mode():
        scores = network(torch.from_numpy(golden["x"])[None, None])[0].numpy()
        assert np.abs(scores - golden[name]).max() < 1e-4


@needs_shared
def test_labels_of_the_published_networks():
    assert meshnet.label_names(NETWORKS / "mindgrab") == ["background", "brain mask"]
    names = meshnet.label_names(NETWORKS / "model18cls")
    assert len(names) == 18 and names[:2] == ["Unknown", "Cerebral-White-Matter"]


def test_axes_run_left_inferior_anterior():
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    lia = meshnet.to_lia(array)
    assert lia.shape == (2, 4, 3)
    assert lia[0, 0, 0] == array[1, 0, 3]           # right, posterior, superior corner
    assert lia[1, 0, 0] == array[0, 0, 3]           # one step to the left
    assert lia[0, 1, 0] == array[1, 0, 2]           # one down
    assert lia[0, 0, 1] == array[1, 1, 3]           # one forward
    assert np.array_equal(meshnet.from_lia(lia), array)


def test_the_fingerprint_depends_on_what_the_files_hold(tmp_path):
    random_meshnet(tmp_path / "a" / "net")
    random_meshnet(tmp_path / "b" / "net")
    random_meshnet(tmp_path / "c" / "net", seed=1)
    first, same, other = (meshnet.fingerprint(tmp_path / name / "net") for name in "abc")
    assert first == same != other
    assert first.startswith("net ") and len(first) == len("net ") + 12


# ------------------------------------------------------------------------------------ wrong files

def changed(folder, change):
    """Applies a function to the content of model.json."""
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def layer_of(content, number):
    return content["modelTopology"]["model_config"]["config"]["layers"][number]


def refused(folder, *words):
    with pytest.raises(UserError) as error:
        meshnet.load(folder)
    assert "\n" not in str(error.value)
    for word in words:
        assert str(word) in str(error.value)


def test_missing_files_are_named(tmp_path):
    refused(tmp_path, tmp_path / "model.json", "no such file")
    random_meshnet(tmp_path)
    (tmp_path / "model.bin").unlink()
    refused(tmp_path, tmp_path / "model.bin", "download.py meshnet")
    (tmp_path / "colormap.json").write_text("[]")
    with pytest.raises(UserError, match="colormap.json: holds no list `labels`"):
        meshnet.label_names(tmp_path)


def test_weights_of_another_size_or_not_finite_are_refused(tmp_path):
    random_meshnet(tmp_path)
    path = tmp_path / "model.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    refused(tmp_path, path, f"{len(raw) - 4} bytes, model.json says {len(raw)}")
    path.write_bytes(raw + b"\0")
    refused(tmp_path, path, f"{len(raw) + 1} bytes")
    path.write_bytes(np.float32("nan").tobytes() + raw[4:])
    refused(tmp_path, path, "not finite")


def test_a_large_file_of_weights_is_not_read(tmp_path):
    random_meshnet(tmp_path)
    with open(tmp_path / "model.bin", "wb") as f:
        f.truncate(meshnet.MAX_WEIGHT_BYTES + 1)
    refused(tmp_path, tmp_path / "model.bin", "more than the")


@pytest.mark.parametrize("names, size", [
    (["output"], 1), (["conv", "output"], 3), (["conv", "output_gn"], 1)])
def test_networks_whose_scores_are_not_made_voxel_by_voxel_are_refused(tmp_path, names, size):
    """They cannot be inferred a few planes at a time."""
    sizes = dict(zip(names, [3] * (len(names) - 1) + [size]))
    weights = {name: (np.ones((k, k, k, 1, 1)), np.zeros(1)) for name, k in sizes.items()}
    write_meshnet(tmp_path, [(name, 1, None) for name in names], weights)
    refused(tmp_path, "model.json", "not a MeshNet", "its last layer is not a convolution of 1 x 1")


@pytest.mark.parametrize("change, words", [
    (lambda c: c.pop("weightsManifest"), "no weightsManifest"),
    (lambda c: c["weightsManifest"][0].update(paths=["../model.bin"]), "not a plain name"),
    (lambda c: c["weightsManifest"][0]["weights"][0].update(name="other"), "no conv_0_gn/kernel"),
    (lambda c: c["weightsManifest"][0]["weights"][0].update(dtype="uint8"), "not float32"),
    (lambda c: c["weightsManifest"][0]["weights"][0].update(shape=[3, 3, 3, 3, 1]), "has shape"),
    (lambda c: c["weightsManifest"][0]["weights"][0].update(shape=[-81]), ""),
    (lambda c: layer_of(c, 1)["config"].update(strides=[2, 2, 2]), "strides"),
    (lambda c: layer_of(c, 1)["config"].update(dilation_rate=[1, 2, 2]), "dilation_rate"),
    (lambda c: layer_of(c, 1)["config"].update(dilation_rate=[10 ** 9] * 3), "dilation_rate"),
    (lambda c: layer_of(c, 1).update(class_name="Lambda"), "class Lambda"),
    (lambda c: layer_of(c, 2)["config"].update(activation="softmax"), "activation softmax"),
    (lambda c: layer_of(c, 3).update(inbound_nodes=[[["input", 0, 0, {}]]]), "does not follow"),
    (lambda c: c.update(modelTopology=[]), "not a MeshNet"),
], ids=range(13))
def test_other_networks_are_refused(tmp_path, change, words):
    random_meshnet(tmp_path)
    changed(tmp_path, change)
    refused(tmp_path, tmp_path, words)
