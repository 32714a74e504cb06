"""Made-up MeshNets in the published format, small and quick."""
import json

import numpy as np


def write_meshnet(folder, convolutions, weights):
    """Writes model.json, model.bin and colormap.json.

    :param convolutions: (name, dilation, activation after it or None) of each
    :param weights: {name of a convolution: (kernel (k, k, k, in, out), bias (out,) or None)}
    """
    folder.mkdir(parents=True, exist_ok=True)
    layers = [{"class_name": "InputLayer", "name": "input", "inbound_nodes": [],
               "config": {"batch_input_shape": [None, 256, 256, 256, 1], "name": "input"}}]
    listed, raw = [], b""

    def add(class_name, name, config):
        layers.append({"class_name": class_name, "name": name, "config": {"name": name, **config},
                       "inbound_nodes": [[[layers[-1]["name"], 0, 0, {}]]]})

    for name, dilation, activation in convolutions:
        kernel, bias = weights[name]
        add("Conv3D", name, {
            "filters": kernel.shape[-1], "kernel_size": list(kernel.shape[:3]),
            "strides": [1, 1, 1], "dilation_rate": [dilation] * 3, "padding": "same",
            "data_format": "channels_last", "activation": "linear", "use_bias": bias is not None})
        if activation:
            add("Activation", f"activation_{name}", {"activation": activation})
        for part, values in (("kernel", kernel), ("bias", bias)):
            if values is not None:
                listed.append({"name": f"{name}/{part}", "shape": list(values.shape),
                               "dtype": "float32"})
                raw += values.astype("<f4").tobytes()
    topology = {"name": "small", "layers": layers, "input_layers": [["input", 0, 0]],
                "output_layers": [[layers[-1]["name"], 0, 0]]}
    content = {"format": "layers-model", "generatedBy": "tests",
               "modelTopology": {"model_config": {"class_name": "Functional", "config": topology}},
               "weightsManifest": [{"paths": ["model.bin"], "weights": listed}]}
    (folder / "model.json").write_text(json.dumps(content))
    (folder / "model.bin").write_bytes(raw)
    classes = weights[convolutions[-1][0]][0].shape[-1]
    labels = ["background", *(f"structure {i}" for i in range(1, classes))]
    (folder / "colormap.json").write_text(json.dumps({"labels": labels}))
    return folder


def random_meshnet(folder, activation="gelu", normalized=True, channels=3, classes=2, seed=0):
    """A network of random weights: dilations 1, 2, 4, then 1 x 1 x 1.

    :return: what `write_meshnet` took: convolutions, weights
    """
    rng = np.random.default_rng(seed)
    suffix = "_gn" if normalized else ""
    convolutions = [(f"conv_{i}{suffix}", 2 ** i, activation) for i in range(3)]
    convolutions.append(("output", 1, None))
    weights, taken = {}, 1
    for name, _, _ in convolutions:
        size, made = (1, classes) if name == "output" else (3, channels)
        kernel = rng.normal(0, 0.4, (size, size, size, taken, made))
        has_bias = name == "output" or not normalized
        weights[name] = kernel, rng.normal(0, 0.4, made) if has_bias else None
        taken = made
    write_meshnet(folder, convolutions, weights)
    return convolutions, weights


def brightness_network(folder, threshold=0.4, kernel=None):
    """A network that takes for brain what is brighter than a part of the brightest voxel.

    :param kernel: (k, k, k, 1, 1) that it looks through; None: at the voxel itself
    """
    if kernel is None:
        kernel = np.zeros((3, 3, 3, 1, 1))
        kernel[1, 1, 1] = 1
    scores = np.array([0.0, 50.0]).reshape(1, 1, 1, 1, 2)
    return write_meshnet(folder, [("conv_0", 1, "relu"), ("output", 1, None)],
                         {"conv_0": (kernel, np.zeros(1)),
                          "output": (scores, np.array([0.0, -50 * threshold]))})
