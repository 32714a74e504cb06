"""table.tex: its structure, escaped names, and that LaTeX compiles it where there is one."""
import shutil
import subprocess

import pytest

from reporting import latex
from utils.escaping import latex_text

NAME = r"50% of A_B & {x} \input{y} $z$ #1 ^~ <|> é 脳"
CONTENT = {
    "size": 128, "sets": {"real": {"n": 16}, "synthetic": {"n": 32}},
    "metrics": {
        "ms_ssim": {"name": "MS-SSIM", "aim": "real", "value": 0.91234, "interval": [0.9, 0.92],
                    "target": {"value": 0.88, "interval": [0.87, 0.9]}, "p": 0.0042,
                    "floor": {"mean": 0.885, "low": 0.87, "high": 0.9}},
        "gradient": {"name": "MMD, ‖x − y‖²", "aim": "low", "value": -0.5}},
    "by_class": {NAME: {"metrics": {"ms_ssim": {"name": "MS-SSIM", "value": 0.5}}},
                 "[CN]": {"metrics": {}}}}


def test_the_table():
    lines = latex.tables(CONTENT).splitlines()
    assert [line for line in lines if "rule" in line] == [
        r"\toprule", r"\midrule", r"\bottomrule"] * 2
    for columns in ("llll", "ll"):
        assert f"\\begin{{tabular}}{{p{{0.28\\linewidth}}{columns}}}" in lines
    assert r"metric & synthetic & real or target & p & floor \\" in lines
    # rounded by the interval's width
    assert (r"MS-SSIM & 0.9123 [0.9, 0.92] & 0.88 [0.87, 0.9] & 0.0042 & "
            r"0.885 \\") in lines
    assert r"MMD, $\|$x $-$ y$\|$$^2$ & $-$0.5 & low & -- & -- \\" in lines
    assert "32 synthetic against 16 real volumes of 128$^3$ voxels" in latex.tables(CONTENT)


def test_single_structures_are_left_to_the_report():
    entry = {"name": "thalamus, volume, ml, d", "aim": "0", "value": 0.1, "family": "volume"}
    found = {"metrics": {**CONTENT["metrics"], "anatomy_volume_thalamus": entry}}
    by_class = {NAME: found, "[CN]": {"metrics": {}}}
    assert latex.tables({**CONTENT, **found, "by_class": by_class}) == latex.tables(
        {**CONTENT, "by_class": {NAME: CONTENT, "[CN]": {"metrics": {}}}})


def test_names_are_escaped():
    assert latex_text(NAME) == (
        r"50\% of A\_B \& \{x\} \textbackslash{}input\{y\} \$z\$ \#1 "
        r"\textasciicircum{}\textasciitilde{} \textless{}\textbar{}\textgreater{} é [U+8133]")
    assert latex_text("ßŁř ąđ \u202e") == "ßŁř [U+0105][U+0111] [U+202E]"
    assert latex_text("a\n% b") == r"a \% b"
    head = next(line for line in latex.tables(CONTENT).splitlines() if "A\\_B" in line)
    assert head.endswith(r" & {[}CN] \\")     # a bracket after \\ would be its argument


def test_without_p_and_classes():
    content = {**CONTENT, "metrics": {"gradient": CONTENT["metrics"]["gradient"]}}
    del content["by_class"]
    text = latex.tables(content)
    assert r"metric & synthetic & real or target & floor \\" in text
    assert text.count(r"\begin{table}") == 1


def test_latex_compiles_it(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on the PATH: apt-get install texlive-latex-recommended")
    (tmp_path / "table.tex").write_text(latex.tables(CONTENT))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
        "\\input{table}\n\\end{document}\n")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper"],
                          cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 1000
