"""MeshNet: small 3D networks of dilated convolutions that segment a brain image.

Reads the format that brainchop publishes (Masoud et al. 2023, JOSS 8:5098, "Brainchop: In-browser
MRI volumetric segmentation and rendering"): model.json, with Keras layers and a weights manifest,
and raw float32 beside it. Nothing in these files is executed.

The networks see voxels of 1 mm with the axes left, inferior, anterior (LIA, FreeSurfer's order):
index 0 runs to the left, 1 downwards, 2 forwards. See `to_lia` and `from_lia`.
"""
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from utils.errors import UserError
from utils.files import is_safe_name, read_json, sha256_of_file, weights_path

MODEL_FILE = "model.json"
LABELS_FILE = "colormap.json"
NORMALIZED_SUFFIX = "_gn"    # of the names of convolutions that an instance norm follows
NORM_EPSILON = 1e-5
MAX_WEIGHT_BYTES = 2 ** 26   # of a network; the published ones have 0.6 MB
MAX_LAYERS = 1000
MAX_DILATION = 64
ACTIVATIONS = {"linear": None, "relu": F.relu, "elu": F.elu, "gelu": F.gelu}
_FORMAT_ERRORS = (KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True)
class Layer:
    """A convolution of model.json, and what follows it."""
    name: str
    dilation: int
    activation: str = "linear"   # a key of ACTIVATIONS

    @property
    def is_normalized(self):
        return self.name.endswith(NORMALIZED_SUFFIX)


class Block(torch.nn.Module):
    """Dilated convolution, instance norm where it has one, activation."""

    def __init__(self, layer, kernel, bias):
        """
        :param layer: Layer
        :param kernel: (out, in, k, k, k), k odd
        :param bias: (out,), or None
        """
        super().__init__()
        self.layer = layer
        self.kernel = torch.nn.Parameter(kernel, requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias, requires_grad=False)

    @property
    def channels(self):
        """Number of channels that it makes."""
        return self.kernel.shape[0]

    @property
    def reach(self):
        """Voxels that the convolution sees beyond each side of its own."""
        return self.layer.dilation * (self.kernel.shape[-1] // 2)

    def forward(self, x):
        x = F.conv3d(x, self.kernel, self.bias, padding=self.reach, dilation=self.layer.dilation)
        if self.layer.is_normalized:
            x = F.instance_norm(x, eps=NORM_EPSILON)
        activate = ACTIVATIONS[self.layer.activation]
        return x if activate is None else activate(x)


class MeshNet(torch.nn.Module):
    """(N, 1, X, Y, Z) intensities in [0, 1], LIA -> (N, classes, X, Y, Z) scores.

    Beyond the volume's edges all layers see zeros.
    """

    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    @property
    def classes(self):
        return self.blocks[-1].channels

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def to_lia(array):
    """A view of a RAS array with the axes of the networks; the inverse of `from_lia`."""
    return array[::-1, :, ::-1].transpose(0, 2, 1)


def from_lia(array):
    """A view of an array of the networks with the axes RAS; the inverse of `to_lia`."""
    return array.transpose(0, 2, 1)[::-1, :, ::-1]


# ---------------------------------------------------------------------------------------- reading

def load(folder):
    """Reads a network.

    :param folder: with model.json and the files that it names
    :return: MeshNet on the CPU, in float32
    :raises UserError: a file is missing, damaged, or of another kind of network
    """
    path = Path(folder) / MODEL_FILE
    content = _read_json(path)
    try:
        layers = _read_layers(content["modelTopology"]["model_config"]["config"]["layers"])
        weights = _read_weights(Path(folder), content["weightsManifest"])
        blocks = [Block(layer, _to_torch_order(weights[f"{layer.name}/kernel"]),
                        weights.get(f"{layer.name}/bias")) for layer in layers]
        _check_blocks(blocks)
    except _FORMAT_ERRORS as e:
        raise UserError(f"{path}: not a MeshNet that can be read ({_reason(e)}); download it again "
                        "by download.py meshnet") from None
    return MeshNet(blocks).eval()


def find(folder, default, purpose):
    """A network's folder, and the network, once it is known to be one.

    :param folder: Path; None: `default`
    :param default: path below weights/
    :param purpose: what it is for, in the error
    :return: Path, MeshNet
    :raises UserError: it is not there, or see `load`
    """
    path = folder or weights_path(default)
    if not (path / MODEL_FILE).is_file():
        raise UserError(f"{path}: holds no network for {purpose}; run download.py meshnet where "
                        "there is internet and copy weights/ here, or give --meshnet")
    return path, load(path)


def label_names(folder):
    """Names of a network's classes, in the order of its scores.

    :param folder: with colormap.json
    :raises UserError: missing, or not such a file
    """
    path = Path(folder) / LABELS_FILE
    content = _read_json(path)
    names = content.get("labels") if isinstance(content, dict) else None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: holds no list `labels`; download it again by download.py meshnet")
    return names


def fingerprint(folder):
    """A network's name and what its files hold, in short: "mindgrab 0123456789ab".

    :param folder: of a network that `load` reads
    """
    folder = Path(folder)
    content = read_json(folder / MODEL_FILE)
    names = [MODEL_FILE, *(name for group in content["weightsManifest"] for name in group["paths"])]
    digests = "".join(sha256_of_file(folder / name) for name in names)
    return f"{folder.resolve().name} {hashlib.sha256(digests.encode()).hexdigest()[:12]}"


def _read_json(path):
    """As `read_json`, whose errors it completes with what to do."""
    try:
        return read_json(path)
    except UserError as e:
        raise UserError(f"{e}; download it again by download.py meshnet") from None


def _reason(error):
    if isinstance(error, KeyError):
        return f"no {error.args[0]}"
    return str(error)


def _read_layers(items):
    """The convolutions of Keras layers that form a chain.

    :return: list of Layer
    :raises ValueError: layers that a MeshNet does not have
    """
    if not 2 <= len(items) <= MAX_LAYERS or items[0]["class_name"] != "InputLayer":
        raise ValueError(f"{len(items)} layers, the first must be the input")
    layers = []
    for previous, item in zip(items, items[1:]):
        if [node[0][0] for node in item["inbound_nodes"]] != [previous["name"]]:
            raise ValueError(f"layer {item['name']} does not follow {previous['name']}")
        config = item["config"]
        if item["class_name"] == "Conv3D":
            layers.append(_conv_layer(item["name"], config))
        elif item["class_name"] == "Activation" and previous["class_name"] == "Conv3D":
            layers[-1] = Layer(layers[-1].name, layers[-1].dilation, config["activation"])
        else:
            raise ValueError(f"layer {item['name']} is of class {item['class_name']}")
    unknown = {layer.activation for layer in layers} - ACTIVATIONS.keys()
    if unknown:
        raise ValueError(f"activation {unknown.pop()}")
    return layers


def _conv_layer(name, config):
    """The Layer of a Conv3D that keeps the volume's shape."""
    expected = {"padding": "same", "data_format": "channels_last", "strides": [1, 1, 1],
                "groups": 1, "activation": "linear"}
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise ValueError(f"layer {name} has {key} {config[key]}")
    dilation = config["dilation_rate"][0]
    if config["dilation_rate"] != [dilation] * 3 or not 1 <= dilation <= MAX_DILATION:
        raise ValueError(f"layer {name} has dilation_rate {config['dilation_rate']}")
    return Layer(name, dilation)


def _read_weights(folder, manifest):
    """{name: tensor} of a weights manifest, once its files are known to have the right size.

    :raises UserError: a file is missing or of another size
    """
    weights = {}
    for group in manifest:
        raw = _read_group(folder, group["paths"])
        size = sum(4 * math.prod(item["shape"]) for item in group["weights"])
        if len(raw) != size:
            raise UserError(f"{folder / group['paths'][0]}: {len(raw)} bytes, {MODEL_FILE} says "
                            f"{size}; download it again by download.py meshnet")
        values = np.frombuffer(raw, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise UserError(f"{folder / group['paths'][0]}: damaged, it holds values that are not "
                            "finite; download it again by download.py meshnet")
        start = 0
        for item in group["weights"]:
            if item["dtype"] != "float32" or "quantization" in item:
                raise ValueError(f"weights {item['name']} are not float32")
            count = math.prod(item["shape"])
            array = values[start:start + count].reshape(item["shape"])
            weights[item["name"]] = torch.from_numpy(array)
            start += count
    return weights


def _read_group(folder, names):
    """The bytes of files of weights, one after the other."""
    raw = b""
    for name in names:
        if not is_safe_name(name):
            raise ValueError(f"its weights are in {name!r}, which is not a plain name")
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: no such file; download it by download.py meshnet")
        if path.stat().st_size > MAX_WEIGHT_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes, more than the "
                            f"{MAX_WEIGHT_BYTES} of a MeshNet that is read")
        raw += path.read_bytes()
    return raw


def _to_torch_order(kernel):
    """(k, k, k, in, out) -> (out, in, k, k, k)."""
    return kernel.permute(4, 3, 0, 1, 2).contiguous()


def _check_blocks(blocks):
    """Raises ValueError unless each convolution takes the channels that the one before makes, and
    the last makes scores of each voxel alone."""
    channels = 1
    for block in blocks:
        out, taken, *size = block.kernel.shape
        if taken != channels or len(set(size)) != 1 or size[0] % 2 == 0:
            raise ValueError(f"the kernel of {block.layer.name} has shape "
                             f"{tuple(block.kernel.shape)}")
        if block.bias is not None and block.bias.shape != (out,):
            raise ValueError(f"the bias of {block.layer.name} has shape {tuple(block.bias.shape)}")
        channels = out
    last = blocks[-1]
    if len(blocks) < 2 or last.reach or last.layer.is_normalized:
        raise ValueError("its last layer is not a convolution of 1 x 1 x 1 voxel after others")
