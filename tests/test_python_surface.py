"""What docs/python.md promises to programs: the names exist, the examples and the notebook run."""
import ast
import doctest
import importlib
import inspect
import json
import re

import pytest
from helpers import ROOT
from small_meshnets import random_meshnet

DOCUMENT = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"
MAX_NOTEBOOK_BYTES = 300_000

# DESIGN: names and leading parameters that notebooks rely on
SURFACE = {
    "mri.mosaic.tile": ["volume", "layout"],
    "mri.mosaic.untile": ["mosaic", "size", "layout"],
    "models.pos_embed": ["width", "grid", "base_grid"],
    "diffusion.gaussian_diffusion.training_losses": ["model", "x0", "t", "y", "noise"],
    "metrics.ms_ssim.ms_ssim_pairs": ["volumes", "protocol"],
    "metrics.mmd.mmd_linear": ["x", "y"],
    "mri.meshnet.load": ["folder"],
}


def listed():
    """{dotted name: its parameters} of the first column of the table."""
    rows = re.findall(r"^\| `([\w.]+)(?:\[name\])?\(([^)]*)\)` \|", DOCUMENT.read_text(), re.M)
    return {name: parameters.split(", ") for name, parameters in rows}


def resolve(name):
    module, attribute = name.rsplit(".", 1)
    return getattr(importlib.import_module(module), attribute)


def test_the_listed_names_have_the_listed_parameters():
    found = listed()
    assert found.pop("models.DiT_models") == ["input_size=…", "num_classes=…"]
    assert "DiT-XL/2" in resolve("models.DiT_models")
    assert found == SURFACE
    for name, parameters in found.items():
        assert list(inspect.signature(resolve(name)).parameters)[:len(parameters)] == parameters


def test_the_examples_run():
    failed, tried = doctest.testfile(str(DOCUMENT), module_relative=False)
    assert failed == 0 and tried > 20


def code_of_notebook():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_uses_the_whole_surface():
    code = "\n".join(code_of_notebook())
    used = {f"{node.module}.{alias.name}" for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.ImportFrom) for alias in node.names}
    missing = set(SURFACE) - used - {"mri.meshnet.load"}
    assert not missing and "mri.meshnet" in used and "meshnet.load(" in code


def test_the_notebook_is_small_and_names_no_folder_of_a_user():
    text = NOTEBOOK.read_text()
    assert len(text) < MAX_NOTEBOOK_BYTES and "image/png" in text
    outputs = [json.dumps(output) for cell in json.loads(text)["cells"]
               for output in cell.get("outputs", ())]
    assert not re.search(r"/(home|Users|tmp|root)/", "\n".join(outputs))
    assert not any('"stderr"' in output or '"error"' in output for output in outputs)


def test_the_notebook_runs(scans, data, vae_folder, finetuned, tmp_path, monkeypatch):
    """On a folder laid out as the demo's, with small weights."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    demo = tmp_path / "demo"
    for name, target in {"scans/mprage": scans, "data/mprage": data, "vae": vae_folder,
                         "results": finetuned.parent}.items():
        (demo / name).parent.mkdir(parents=True, exist_ok=True)
        (demo / name).symlink_to(target)
    network = tmp_path / "weights" / "meshnet" / "mindgrab"
    random_meshnet(network)
    monkeypatch.setenv("MOSAICDIT_DEMO", str(demo))
    monkeypatch.setenv("MOSAICDIT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3",
                            resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "-> cube (16, 16, 16) -> mosaic (48, 48, 3)" in printed
    assert "DiT-T/4, step 4: 9 tokens" in printed and "MMD, linear" in printed
    assert re.search(r"^[\d,]+ parameters$", printed.splitlines()[-1])
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 3
