"""Scores of a reader study in words."""
from reporting import reader_report

FULL = {"reader": "a|b", "rated": 40, "undecided": 2,
        "auc": {"value": 0.71234, "interval": [0.55, 0.85], "p": 0.0123},
        "sensitivity": {"value": 0.65, "interval": [0.41, 0.85]},
        "specificity": {"value": None, "interval": None}}
SCORES = {"study": "0123456789abcdef", "cases": {"real": 20, "synthetic": 20}, "readers": [FULL]}
PAIR = {**SCORES, "readers": [FULL, {**FULL, "reader": "c", "rated": 17}],
        "mean_auc": {"value": 0.7, "interval": None},
        "agreement": {"cases": 17, "calls": {"value": 0.25, "interval": [-0.1, 0.6]},
                      "ratings": {"value": None, "interval": None}}}


def test_one_reader():
    assert reader_report.terminal_lines(SCORES) == [
        "a|b: AUC 0.712 [0.55, 0.85], p 0.012; sensitivity 0.65 [0.41, 0.85]; specificity –"]
    text = reader_report.markdown(SCORES)
    assert "20 real and 20 synthetic volumes, study `0123456789abcdef`." in text
    assert ("| a&#124;b | 40 | 2 | 0.712 [0.55, 0.85] | 0.012 | 0.65 [0.41, 0.85] | – |"
            in text.splitlines())
    assert "Agreement" in text and "mean AUC" not in text


def test_two_readers_of_whom_one_stopped():
    lines = reader_report.terminal_lines(PAIR)
    assert lines[0] == "warning: c rated 17 of 40 cases; the numbers are of these"
    assert lines[-2:] == [
        "mean AUC of 2 readers: 0.7",
        "agreement on 17 cases, kappa: of what they are called 0.25 [−0.1, 0.6]; of the ratings –"]
    text = reader_report.markdown(PAIR)
    assert "**Warning:** c rated 17 of 40 cases; the numbers are of these." in text
    nothing = {**PAIR, "agreement": {"cases": 0}}
    assert reader_report.terminal_lines(nothing)[-1].startswith("agreement: not known")
