"""Progress: plain lines when stderr is a file, errors in one line, exit codes."""
import pytest

from utils import errors, progress


def test_plain_lines_say_the_end(capsys):
    assert list(progress.progress(range(3), "things")) == [0, 1, 2]
    assert capsys.readouterr().err.startswith("things: 3/3 in ")
    with progress.counter("things", 5):
        pass
    assert capsys.readouterr().err == ""


def test_rates_start_after_the_set_up(capsys, monkeypatch):
    """An hour of set-up and then one item a second: seconds are left, and not weeks."""
    clock = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock)
    with progress.counter("things", 1000, initial=200, seconds=10, first=2) as update:
        clock = 3600.0
        update()
        for _ in range(14):
            clock += 1
            update()
        update(785)
    assert capsys.readouterr().err.splitlines() == [
        "things: 201/1000",
        "things: 203/1000, 1/s, 797 s left",
        "things: 213/1000, 1/s, 787 s left",
        "things: 1000/1000 in 3614.0 s"]


def test_a_bar_starts_its_clock_with_the_first_item(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    unpaused = []
    monkeypatch.setattr(progress.tqdm, "unpause", lambda bar: unpaused.append(bar.n))
    with progress.counter("things", 3, initial=1) as update:
        update()
        update()
    assert unpaused == [1] and "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("error, code, words", [
    (errors.UserError("--flag 3: is\n wrong"), 2, "error: --flag 3: is wrong\n"),
    (FileNotFoundError(2, "No such file", "a/b"), 2, "error: a/b: No such file\n"),
    (MemoryError(), 2, "out of memory (host); use a smaller batch"),
    (RuntimeError("CUDA out of memory. Tried"), 2, "out of memory (CUDA out of memory"),
    (KeyboardInterrupt(), 130, ": interrupted\n"),
])
def test_errors_end_in_one_line_and_a_code(error, code, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as exit_:
        errors.run_script(main)
    printed = capsys.readouterr().err
    assert exit_.value.code == code and words in printed and printed.count("\n") == 1


def test_a_bug_keeps_its_traceback_and_success_its_code():
    def bug():
        raise RuntimeError("index out of range")

    with pytest.raises(RuntimeError):
        errors.run_script(bug)
    for result, code in ((None, None), (1, 1)):
        with pytest.raises(SystemExit) as exit_:
            errors.run_script(lambda result=result: result)
        assert exit_.value.code == code
    assert errors.shorten("a\n  b", 3) == "a b"


def test_errors_that_mean_out_of_memory():
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried"),
                  RuntimeError("DefaultCPUAllocator: can't allocate memory"),
                  RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")):
        assert errors.out_of_memory(error) is error
        try:
            try:
                raise error
            finally:
                raise RuntimeError("operation failed due to an error during capture")
        except RuntimeError as e:
            assert errors.out_of_memory(e) is error
    assert errors.out_of_memory(RuntimeError("shapes do not match")) is None
    hidden = KeyError("a bug")
    hidden.__context__ = MemoryError()
    assert errors.out_of_memory(hidden) is None
