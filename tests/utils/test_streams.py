"""Streams that do not stop the work."""
import os
import subprocess
import sys

import pytest
from helpers import ROOT

from utils import streams

PROGRAM = """
import os, sys
sys.path.insert(0, sys.argv[1])
from utils import streams
streams.make_robust()
for i in range(3):
    print("naïve – text", i, flush=True)
print("on stderr", file=sys.stderr)
with open(sys.argv[2], "w") as f:
    f.write(f"{f.fileno()} {sys.stdout.isatty()}")
os.write(1, b"from a library ")
sys.exit(7)
"""


def run(tmp_path, redirection="", environment="", encoding="utf-8"):
    """Exit code, what came out, and the file that the program writes."""
    file = tmp_path / "file"
    done = subprocess.run(
        ["bash", "-c", f'{environment} "$@" {redirection}', "-", sys.executable, "-c", PROGRAM,
         str(ROOT), str(file)], capture_output=True)
    descriptor, terminal = file.read_text().split()     # and not what a library printed
    assert int(descriptor) > 2 and terminal == "False"
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def test_plain(tmp_path):
    said = "".join(f"naïve – text {i}\n" for i in range(3))
    assert run(tmp_path) == (7, said + "from a library ", "on stderr\n")


@pytest.mark.parametrize("redirection", [">&-", "<&- >&-", "> >(true); sleep 0.1; exit 7"])
def test_a_stdout_that_is_gone(tmp_path, redirection):
    assert run(tmp_path, redirection) == (7, "", "on stderr\n")


def test_a_stderr_that_is_gone(tmp_path):
    assert run(tmp_path, "2>&- >/dev/null") == (7, "", "")


def test_a_full_disk_is_named_once(tmp_path):
    code, out, err = run(tmp_path, ">/dev/full")
    assert (code, out) == (7, "") and err.splitlines() == [
        "warning: stdout cannot be written (No space left on device); the work continues, and what "
        "it prints is lost", "on stderr"]


@pytest.mark.parametrize("encoding, printed", [
    ("ascii", "na\\xefve \\u2013 text 0"), ("latin-1", "naïve \\u2013 text 0")])
def test_characters_that_an_encoding_lacks(tmp_path, encoding, printed):
    code, out, err = run(tmp_path, environment=f"PYTHONIOENCODING={encoding}", encoding=encoding)
    assert code == 7 and out.splitlines()[0] == printed and err == "on stderr\n"


def test_what_cannot_be_written_is_dropped():
    read_end, write_end = os.pipe()
    output = streams._Output(write_end, "wb", closefd=False)
    assert output.write(b"abc") == 3 and os.read(read_end, 9) == b"abc"
    os.close(read_end)
    assert output.write(b"abcd") == 4
    assert os.path.samestat(os.fstat(write_end), os.stat(os.devnull))
    os.close(write_end)
