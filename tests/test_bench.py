"""bench.py as a user runs it, at a size where it says nothing about speed."""
import re

from conftest import script


def test_metrics():
    done = script("bench.py", "metrics", "--size", 16, "--volumes", 3, "--mmd-volumes", 2, "--repeats", 2, "--device", "cpu")
    assert re.search(r"SciPy, from the formula +[\d.]+\n.*3 pairs +[\d.]+ +[\d.]+ times faster", done.stdout)
    assert float(re.search(r"difference ([\d.e+-]+)", done.stdout)[1]) < 1e-5  # the two ways agree
    assert "10 inner products" in done.stdout
    script("bench.py", "metrics", "--size", 8, expect=2)
