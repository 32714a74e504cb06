import pytest

from reporting import rounding


@pytest.mark.parametrize("value, expected", [
    (None, "–"), (float("nan"), "–"), (0.0, "0"), (-1.23456, "−1.235"), (1e-7, "1e−07")])
def test_number(value, expected):
    assert rounding.number(value) == expected


@pytest.mark.parametrize("value, pair, expected", [
    (0.009612, (0.001877, 0.01339), "0.0096 [0.002, 0.013]"),
    (47.6647, (26.1, 60.5), "47.7 [26, 60]"),
    (0.91, (0.9, 0.92), "0.91 [0.9, 0.92]"),
    (1234.5, (-410.2, 2100.0), "1230 [−400, 2100]"),
    (0.98765, (0.98401, 0.99102), "0.98765 [0.984, 0.991]"),
    (-0.00004, (-0.012, 0.011), "0 [−0.012, 0.011]"),
    (0.0, (0.0, 0.1059), "0 [0, 0.11]"),
    (3.14159, None, "3.142"),
    (2.0, (2.0, 2.0), "2 [2, 2]"),
    (-1.13, (-2.31, -0.031), "−1.13 [−2.3, −0.03]"),     # 0 is outside, and stays there
    (0.6, (-0.0412, 1.24), "0.6 [−0.04, 1.2]"),
    (0.5, (2e-17, 1.0), "0.5 [0, 1]"),
    (None, (0, 1), "–"),
    (1 - 2 ** -53, (1 - 2 ** -52, 1.0), "1 [1, 1]"),      # exact copies: rounding errors alone
    (1 - 4e-9, (1 - 6e-9, 1 - 2e-9), "0.999999996 [0.999999994, 0.999999998]"),
    (1.0, (2.0, 1.0), "1 [2, 1]"),
    (3.125e-12, (1e-12, 5e-12), "3.125e−12 [1e−12, 5e−12]"),
    (0.5, (0.1, float("nan")), "0.5 [0.1, –]"),
    (3.0, (float("-inf"), 4.0), "3 [−inf, 4]"),
])
def test_digits_follow_the_interval(value, pair, expected):
    assert "".join(rounding.with_span(value, pair)) == expected


@pytest.mark.parametrize("values, expected", [
    ((58.5, 35.6, 95.8), "58.5 (35.6 … 95.8)"), ((10683, 10487, 11021), "10683 (10487 … 11021)"),
    ((-0.001, -0.0487, 0.0613), "−0.001 (−0.049 … 0.061)"), ((0.0, 0.0, 0.0), "0 (0 … 0)"),
    ((1 - 2 ** -53, 1 - 2 ** -52, 1.0), "1 (1 … 1)")])
def test_digits_follow_the_spread(values, expected):
    assert rounding.with_range(*values) == expected
