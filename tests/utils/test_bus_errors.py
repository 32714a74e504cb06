"""Files that become shorter while they are mapped into memory: one line instead of a silent death.

Each program maps a file, cuts it off, and then needs it; `run_script` is what all scripts run in.
"""
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT
from safetensors.torch import save_file

from utils import bus_errors, leftovers

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from utils import errors
import numpy as np, torch
from safetensors import safe_open
from utils import files, pickles
path = sys.argv[2]

def main():
    with files.atomic_file(path + ".result") as temporary:
        temporary.write_text("half")
        {read}

errors.run_script(main)
"""
READERS = {
    "pickles": "found = pickles.load(path)['w']; os.truncate(path, 0); print(found.sum())",
    "safetensors": "f = safe_open(path, 'pt'); f.__enter__(); found = f.get_tensor('w');"
                   "os.truncate(path, 0); print(found.sum())",
    "NumPy, which holds the interpreter's lock":
        "found = np.memmap(path, np.uint8, 'r'); os.truncate(path, 0); print(found.tobytes()[:3])",
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_cut_off_while_it_is_read(tmp_path, reader):
    path = tmp_path / "w"
    tensors = {"w": torch.ones(2 ** 20)}
    torch.save(tensors, path) if reader == "pickles" else save_file(tensors, path)
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(read=READERS[reader]), str(ROOT),
                           str(path)], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"-c: error: {bus_errors.MESSAGE}\n"
    assert os.listdir(tmp_path) == ["w"]


def test_of_the_temporary_files_only_its_own_are_removed(tmp_path):
    """Those of a parent, which a forked worker knows, stay."""
    mine = tmp_path / f"{leftovers.prefix_of(tmp_path / 'a')}x"
    parents = tmp_path / mine.name.replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    for path in (mine, parents):
        path.mkdir()
        leftovers.claim(path)
    try:
        leftovers.remove_own()
        assert os.listdir(tmp_path) == [parents.name]
    finally:
        for path in (mine, parents):
            leftovers.release(path)
