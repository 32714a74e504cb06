"""Ctrl-C at any moment of a script's start, and signals before there is anything to save."""
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from utils import errors, signals


@pytest.mark.parametrize("script", ["train", "sample"])
def test_ctrl_c_while_a_script_imports_ends_in_one_line(script):
    """The imports take more than a second; the signal comes when they have begun."""
    process = subprocess.Popen([sys.executable, "-X", "importtime", f"{script}.py", "--help"],
                               cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = []
    for line in process.stderr:  # -X importtime prints each module once it is imported
        lines.append(line)
        if "| " in line and line.split("|")[-1].strip() == "utils.errors":
            break
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == errors.EXIT_INTERRUPTED
    said = [line for line in rest.splitlines() if not line.startswith("import time:")]
    assert said == [f"{script}.py: interrupted"]


def test_no_handler_in_a_notebook_or_test():
    assert not errors._is_script_running()
    assert signal.getsignal(signal.SIGINT) is not errors._exit_during_imports


def test_a_signal_before_training_exits(capfd):
    numbers = [*signals.StopSignals.NUMBERS]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        stop = signals.StopSignals()
        with pytest.raises(SystemExit) as raised:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(1)
        assert raised.value.code == errors.EXIT_STOPPED and stop.received is None
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "SIGUSR1 during set-up: nothing to save" in capfd.readouterr().err


@pytest.mark.parametrize("number, code, words", [
    (signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted"),
    (signal.SIGHUP, 129, "ended by SIGHUP")])
def test_a_signal_that_a_library_takes_for_damage(number, code, words):
    """safetensors, interrupted, says that a file is damaged."""
    program = ("import os, sys\n"
               "sys.path.insert(0, sys.argv[1])\n"
               "from utils import errors\n"
               "def main():\n"
               "    try:\n"
               "        os.kill(os.getpid(), int(sys.argv[2]))\n"
               "        while True: pass\n"
               "    except BaseException:\n"
               "        raise errors.UserError('a: damaged') from None\n"
               "errors.run_script(main)\n")
    done = subprocess.run([sys.executable, "-c", program, str(ROOT), str(int(number))],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stderr == f"-c: {words}\n"
