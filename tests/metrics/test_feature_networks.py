import sys
import zipfile

import numpy as np
import pytest
import torch

from metrics.feature_networks import FeatureNetwork
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning",
                                        "ignore:.*torch.jit.*:DeprecationWarning")


class Means(torch.nn.Module):
    """Mean and mean square of each volume."""

    def forward(self, x):
        return torch.stack([x.mean((1, 2, 3, 4)), x.square().mean((1, 2, 3, 4))], dim=1)


class Writes(torch.nn.Module):
    def forward(self, x):
        torch.save(x, "written.pt")
        return x.mean((2, 3, 4))


class OfOneSize(torch.nn.Module):
    def forward(self, x):
        return x.reshape(-1, 4096)


class NotFinite(torch.nn.Module):
    def forward(self, x):
        return x.mean((2, 3, 4)) / 0


class NoRows(torch.nn.Module):
    def forward(self, x):
        return x.mean()


def torchscript(path, module, traced=True):
    example = torch.zeros(1, 1, 16, 16, 16)
    (torch.jit.trace(module, example) if traced else torch.jit.script(module)).save(str(path))
    return path


def volumes(n=3, side=16):
    return torch.from_numpy(np.random.default_rng(0).random((n, 1, side, side, side), np.float32))


def test_torchscript(tmp_path):
    network = FeatureNetwork(torchscript(tmp_path / "means.pt", Means()))
    x = volumes()
    torch.testing.assert_close(network(x), Means()(x))
    assert len(network.sha256) == 64


class _OnGpu(torch.Tensor):
    """A tensor that NumPy cannot take before it is on the CPU."""

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the packages onnx and onnxruntime")
    pytest.importorskip("onnxruntime", reason="needs the packages onnx and onnxruntime")
    from onnx import TensorProto, helper
    shape = ["n", 1, "x", "y", "z"]
    nodes = [helper.make_node("ReduceMean", ["volumes"], ["mean"], axes=[2, 3, 4], keepdims=0)]
    graph = helper.make_graph(
        nodes, "means", [helper.make_tensor_value_info("volumes", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, tmp_path / "means.onnx")
    x = volumes()
    torch.testing.assert_close(FeatureNetwork(tmp_path / "means.onnx")(x), x.mean((2, 3, 4)))
    torch.testing.assert_close(FeatureNetwork(tmp_path / "means.onnx")(
        x.as_subclass(_OnGpu)), x.mean((2, 3, 4)))
    (tmp_path / "bad.onnx").write_bytes(b"junk")
    with pytest.raises(UserError, match="--features .*bad.onnx: cannot be read as ONNX"):
        FeatureNetwork(tmp_path / "bad.onnx")


def test_onnx_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "n.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="needs the package onnxruntime; `pip install onnxruntime`"):
        FeatureNetwork(tmp_path / "n.onnx")


def test_a_program_that_writes_files_is_refused_before_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = torchscript(tmp_path / "writes.pt", Writes(), traced=False)
    torch.jit.load(str(path))(volumes())
    assert (tmp_path / "written.pt").exists()       # PyTorch alone lets it
    with pytest.raises(UserError, match="refused, its program calls torch.save"):
        FeatureNetwork(path)


@pytest.mark.parametrize("name, content, message", [
    ("absent.pt", None, "no such file"),
    ("network.pth", b"", r"must be TorchScript \(.pt\) or ONNX"),
    ("junk.pt", b"junk", "cannot be read as TorchScript"),
])
def test_files_that_are_no_network(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        FeatureNetwork(tmp_path / name)


def test_weights_alone_are_no_network(tmp_path):
    torch.save(torch.nn.Conv3d(1, 2, 3).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds weights alone, no network; export it with"):
        FeatureNetwork(tmp_path / "weights.pt")


def test_a_program_that_unpacks_to_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("metrics.feature_networks.MAX_CODE", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/code/x.py", b" " * 1001)
    with pytest.raises(UserError, match="its program claims 1,001 bytes"):
        FeatureNetwork(tmp_path / "bomb.pt")


@pytest.mark.parametrize("module, message", [
    (OfOneSize(), "fails on an input of 3 x 1 x 9 x 9 x 9"),
    (NotFinite(), "gives features that are not finite"),
    (NoRows(), "one row of features per volume"),
])
def test_outputs_that_are_no_features(tmp_path, module, message):
    network = FeatureNetwork(torchscript(tmp_path / "network.pt", module))
    with pytest.raises(UserError, match=message):
        network(volumes(side=9))
