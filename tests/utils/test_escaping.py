"""Texts from files: as a terminal, a page and a spreadsheet may have them; in one place alone."""
import io
import sys

import pytest
from helpers import ROOT
from tqdm import tqdm

from utils import escaping

RED, BELL, RIGHT_TO_LEFT = "\x1b[31m", "\x07", "\u202e"


@pytest.mark.parametrize("text, shown", [
    ("sub-01, 128³ × 1 – naïve 日本", "sub-01, 128³ × 1 – naïve 日本"),
    (f"{RED}red{BELL}", "\\x1b[31mred\\x07"),
    (f"a{RIGHT_TO_LEFT}b\u2066\u200f\ufeff", "a\\u202eb\\u2066\\u200f\\ufeff"),
    ("a\nb\tc\rd\x85e\u2028f\x9bg", "a\\nb\\tc\\rd\\x85e\\u2028f\\x9bg"),
    ("caf\udce9.nii", "caf\\udce9.nii"),
    ("10\u00a0mm", "10\u00a0mm"),
])
def test_printable(text, shown):
    assert escaping.printable(text) == shown
    assert escaping.printable(shown) == shown and shown.encode()


def test_few_of_many_names():
    assert escaping.some_names(["a", RED]) == "a, \\x1b[31m"
    assert escaping.some_names([str(i) for i in range(25)]).endswith("18, 19 and 5 more")


@pytest.mark.parametrize("text, expected", [
    ("=1+1", "'=1+1"), ("@SUM(A1)", "'@SUM(A1)"), ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
    ("-2+3", "'-2+3"), ("\t=1", "'=1"), ("\r=1", "'=1"), ("a\n=1", "a =1"), ("-", "'-"),
    ("-0.5", "-0.5"), ("+3", "+3"), ("-1e-05", "-1e-05"), ("-.5", "-.5"), ("-inf", "-inf"),
    (-0.5, "-0.5"), ("0..1", "0..1"), ("a=b", "a=b"), ("", ""), (RED, "\\x1b[31m"),
])
def test_cells(text, expected):
    assert escaping.cell(text) == expected


@pytest.mark.parametrize("text, expected", [
    ("<script>alert(1)</script>", "&#60;script&#62;alert(1)&#60;/script&#62;"),
    ("[x](http://a)", "&#91;x&#93;(http://a)"), ("**b** _i_ `c`", None), ("a|b ~~c~~ $x$ #1", None),
    ("sub-01_ses-1", "sub-01_ses-1"), ("a & b", "a &#38; b"),
])
def test_markup_means_itself(text, expected):
    escaped = escaping.markup(text)
    assert expected in (None, escaped)
    assert not set("<>`*[]|~$") & set(escaped) and "#1" not in escaped.replace("&#1", "")
    html = escaping.html_text(escaped)
    assert html == escaped       # entities are the same in a page
    assert escaping.html_text("<b>") == "&lt;b&gt;" and escaping.html_text("&lt;") == "&amp;lt;"


def test_code():
    assert escaping.code("data/a_b*c") == "`data/a_b*c`"
    assert escaping.code("a`<img>") == "a&#96;&#60;img&#62;"
    assert escaping.code(RED) == "`\\x1b[31m`"


def test_whatever_is_printed_is_harmless(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    escaping.protect_terminal()
    escaping.protect_terminal()     # twice: as harmless as once
    print(f"two {RED}words\n\ttab", RIGHT_TO_LEFT)
    print(f"over\rwritten \x1b[A{BELL}", file=sys.stderr)
    assert out.getvalue() == "two \\x1b[31mwords\n\ttab \\u202e\n"
    assert err.getvalue() == "over\\rwritten \\x1b[A\\x07\n"


def test_progress_bars_still_move_the_cursor(monkeypatch):
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    escaping.protect_terminal()
    for _ in tqdm(range(2), desc="outer", file=sys.stderr):
        for _ in tqdm(range(2), desc="inner", file=sys.stderr, leave=False):
            pass
    assert "\router" in err.getvalue() and "\x1b[A" in err.getvalue()
    assert "\\x1b" not in err.getvalue() and "\\r" not in err.getvalue()


def test_no_module_escapes_by_itself():
    """One place. blocks.py escapes the parts of its page that nobody else writes, streams.py what
    the encoding of a terminal lacks."""
    folders = (path for path in ROOT.iterdir() if (path / "__init__.py").is_file())
    files = [*ROOT.glob("*.py"), *(path for folder in folders for path in folder.glob("*.py"))]
    assert len(files) > 80
    found = {(path.name, word) for path in files for word in ("html.escape", "backslashreplace")
             if word in path.read_text()}
    assert found == {("escaping.py", "html.escape"), ("blocks.py", "html.escape"),
                     ("streams.py", "backslashreplace")}


def test_commands_in_a_sentence_stay_code_and_names_do_not_become_markup():
    assert escaping.sentence("no weights; `python download.py inception` fetches them") == (
        "no weights; `python download.py inception` fetches them")
    assert escaping.sentence("*a* <b> `x <y>` `") == (
        "&#42;a&#42; &#60;b&#62; x &#60;y&#62; &#96;")
    assert escaping.sentence("a\nb") == "a&#92;nb"     # shown as a\\nb
