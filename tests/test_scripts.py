"""Each script, started as a user starts it: in a new Python, not forked from one that has run."""
import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import error_line, script
from test_house import SCRIPTS, flags_of

from utils.version import __version__

REQUIRED = {  # arguments without which a script complains of their absence first
    "train": ("--data-path", "data"),
    "sample": ("--ckpt", "checkpoint", "--output", "out"),
    "preprocess": ("--input", "scans", "--output", "out"),
    "postprocess": ("--input", "samples", "--output", "out"),
    "evaluate": ("--real", "data", "--synthetic", "samples", "--output", "out"),
    "train_vae": ("--data-path", "data", "--output", "out", "--init", "tiny"),
    "download": ("all",),
    "bench": ("metrics",),
    "train_refiner": ("--data-path", "data", "--output", "out"),
    "export": ("--ckpt", "checkpoint", "--format", "dit", "--output", "out"),
}
COMMANDS_OF_BENCH = ("train", "sample", "samplers", "preprocess", "metrics", "scaling",
                     "layouts", "study", "attention")
WIDTH = {"COLUMNS": "100"}


@pytest.fixture(scope="module")
def started():
    """{(script, flag): future of its run}; two at a time, as most of a start is imports."""
    with ThreadPoolExecutor(2) as pool:
        yield {(name, flag): pool.submit(script, f"{name}.py", flag, fresh=True, env=WIDTH)
               for name in SCRIPTS for flag in ("--version", "--help")}


@pytest.mark.parametrize("name", SCRIPTS)
def test_version(started, name):
    done = started[name, "--version"].result()
    assert done.stdout == f"MosaicDiT {__version__}\n" and done.stderr == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_explains_every_flag(started, name):
    done = started[name, "--help"].result()
    assert done.stdout.startswith(f"usage: {name}.py") and done.stderr == ""
    found = help_texts(done.stdout)
    if name == "bench":
        for command in COMMANDS_OF_BENCH:
            found |= help_texts(script("bench.py", command, "--help", env=WIDTH).stdout)
    flags = {flag for flag in flags_of(name) if flag.startswith("--")}
    assert flags == {flag for flag in found if flag.startswith("--")}
    assert [flag for flag, text in found.items() if len(text.split()) < 2] == []


def help_texts(text):
    """{flag: its help without the default} from the output of --help."""
    found, current = {}, ()
    for line in text.splitlines():
        if line.startswith("  -"):
            head, _, rest = line.strip().partition("  ")
            current = re.findall(r"(?<![\w-])--?[a-z][\w-]*", head)
            found.update(dict.fromkeys(current, rest.strip()))
        elif line.startswith(" " * 20):
            found.update({flag: f"{found[flag]} {line.strip()}".strip() for flag in current})
        else:
            current = ()
    return {flag: re.sub(r"\(default: [^)]*\)$", "", help) for flag, help in found.items()}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_is_refused(name):
    done = script(f"{name}.py", *REQUIRED[name], "--no-such-flag", expect=2)
    assert done.stderr.startswith(f"usage: {name}.py") and done.stdout == ""
    assert error_line(done) == f"{name}.py: error: unrecognized arguments: --no-such-flag"


def test_flags_are_not_abbreviated():
    done = script("train.py", "--data-path", "data", "--max-step", 3, expect=2)
    assert error_line(done) == "train.py: error: unrecognized arguments: --max-step 3"
