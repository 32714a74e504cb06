"""Mutated files: every case ends in success or in one line, within 10 s and 2 GB. See fuzz.py, which this runs."""
import collections
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT

ENDS = ("used", "skipped", "refused")


@pytest.mark.parametrize("cases", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files_end_in_success_or_one_line(cases):
    done = subprocess.run([sys.executable, str(ROOT / "tests" / "fuzz.py"), "--cases", str(cases)], capture_output=True, text=True,
                          timeout=60 + cases, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"exit {done.returncode} in case {lines[-1] if lines else 'none'}\n{done.stderr[-2000:]}"
    counts = collections.Counter()
    for line in lines:
        case, _, end = line.partition("} {")
        case, end = json.loads(case + "}"), json.loads("{" + end)
        assert end["ended"] in (ENDS if case["case"] >= 0 else ("used",)), (case, end)
        counts[case["kind"], end["ended"]] += case["case"] >= 0
    kinds = sorted({kind for kind, _ in counts})
    print("\n| kind | " + " | ".join(ENDS) + " |\n|---|" + "---|" * len(ENDS))
    for kind in kinds:
        print(f"| {kind} | " + " | ".join(str(counts[kind, end]) for end in ENDS) + " |")
    assert counts.total() == cases
    assert kinds == ["checkpoint", "manifest", "mask", "png", "scan", "table", "weights"]
    assert all(counts[kind, "refused"] for kind in kinds) and counts["scan", "used"] > cases / 10   # neither all nor nothing
