"""Mutated inputs: every case ends in success or in one line, within 10 s and 2 GB. See fuzz.py."""
import collections
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

ENDS = ("used", "skipped", "refused")
KINDS = ["checkpoint", "cubes", "folders", "labels", "links", "lists", "manifest", "mask", "npy",
         "png", "ranges", "samples", "scan", "splits", "weights"]


def run_fuzz(cases):
    """Runs fuzz.py; yields what it printed of each case: (case and kind, how it ended)."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "fuzz.py"), "--cases", str(cases)],
        capture_output=True, text=True, timeout=60 + cases, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"exit {done.returncode} in case {lines[-1] if lines else 'none'}\n{done.stderr[-2000:]}")
    for line in lines:
        case, _, end = line.partition("} {")
        yield json.loads(case + "}"), json.loads("{" + end)


@pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_end_in_success_or_one_line(cases):
    counts = collections.Counter()
    for case, end in run_fuzz(cases):
        is_mutated = case["case"] >= 0
        assert end["ended"] in (ENDS if is_mutated else ("used",)), (case, end)
        counts[case["kind"], end["ended"]] += is_mutated
    print_table(counts)
    assert counts.total() == cases
    assert sorted({kind for kind, _ in counts}) == KINDS
    # neither everything nor nothing is refused
    assert all(counts[kind, "refused"] for kind in KINDS)
    assert counts["scan", "used"] > cases / 20


def print_table(counts):
    print("\n| kind | " + " | ".join(ENDS) + " |\n|---|" + "---|" * len(ENDS))
    for kind in KINDS:
        print(f"| {kind} | " + " | ".join(str(counts[kind, end]) for end in ENDS) + " |")
