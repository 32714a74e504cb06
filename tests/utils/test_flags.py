"""Flags that scripts share: help texts, checked types, the version."""
import argparse
import re

import pytest

from utils import flags, precision, seeding, version


def test_help_shows_defaults_that_mean_something():
    parser = flags.make_parser("what it does")
    parser.add_argument("--number", type=flags.positive, default=0.5, help="a number, in mm")
    parser.add_argument("--pair", nargs=2, default=(0.0, 99.9), help="two percentiles, in %%")
    parser.add_argument("--switch", action="store_true", help="do it; default: do not")
    parser.add_argument("--file", help="a file; default: none")
    parser.add_argument("--names", nargs="+", default=[], help="some names; default: none")
    parser.add_argument("--text", default="", help="a text; default: none")
    text = " ".join(parser.format_help().split())
    assert "a number, in mm (default: 0.5)" in text
    assert "two percentiles, in % (default: 0.0 99.9)" in text
    assert "default: do not" in text and "(default: False)" not in text
    assert "(default: None)" not in text and "(default: )" not in text


def test_version_and_abbreviations(capsys):
    parser = flags.make_parser("what it does")
    parser.add_argument("--max-steps", type=int)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"MosaicDiT {version.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+", version.__version__)
    with pytest.raises(SystemExit) as exit_:
        parser.parse_args(["--max-step", "3"])
    assert exit_.value.code == 2


@pytest.mark.parametrize("kind, good, bad", [
    (flags.whole_number, {"0": 0, "12": 12}, ("-1", "1.5", "", "x", "²")),
    (flags.positive, {"0.5": 0.5, "1e3": 1000.0}, ("0", "-1", "nan", "inf", "x")),
    (flags.non_negative, {"0": 0.0, "2": 2.0}, ("-0.1", "nan", "inf", "")),
    (flags.shard, {"1/1": (1, 1), "3/8": (3, 8)}, ("0/8", "9/8", "3", "a/b", "1/2/3", "1/0")),
])
def test_types(kind, good, bad):
    assert {text: kind(text) for text in good} == good
    for text in bad:
        with pytest.raises(argparse.ArgumentTypeError):
            kind(text)


def test_device_compile_and_precision(capsys):
    parser = flags.make_parser("what it does")
    group = parser.add_argument_group("speed")
    flags.add_device_flag(group)
    flags.add_compile_flag(group)
    flags.add_precision_flag(group)
    args = parser.parse_args(["--device", "cpu"])
    assert (args.device, args.compile, args.precision) == ("cpu", None, "bf16")
    assert parser.parse_args(["--no-compile"]).compile is False
    for device, words in (("nonsense", "is not a device"), ("cuda:99", "PyTorch sees")):
        with pytest.raises(SystemExit):
            parser.parse_args(["--device", device])
        assert words in capsys.readouterr().err
    assert flags.flag_of("max_steps") == "--max-steps" and flags.CPU_CORES >= 1


def test_autocast_follows_the_precision():
    import torch
    a = torch.ones(2, 2)
    with precision.autocast("cpu", "bf16"):
        assert (a @ a).dtype == torch.bfloat16
    with precision.autocast("cpu", "fp32"):
        assert (a @ a).dtype == torch.float32


def test_seeded_generators_depend_on_seed_and_index_alone():
    import torch

    def draw(seed, index):
        return torch.randint(10 ** 9, (3,), generator=seeding.seeded_generator(seed, index))

    assert torch.equal(draw(1, 2), draw(1, 2))
    assert not torch.equal(draw(1, 2), draw(2, 1)) and not torch.equal(draw(1, 2), draw(1, 3))


def test_weighted_draws_are_as_frequent_as_their_counts():
    """Their values are part of the format: they decide which class and row a sample has."""
    drawn = [seeding.draw_weighted([1, 0, 3], 7, i, purpose=2) for i in range(2000)]
    assert drawn[:10] == [2, 0, 2, 2, 0, 2, 0, 2, 0, 0]
    assert drawn.count(1) == 0 and drawn.count(2) / 2000 == pytest.approx(0.75, abs=0.03)
    other = [seeding.draw_weighted([1, 0, 3], 7, i, purpose=1) for i in range(2000)]
    assert 0.55 < sum(a == b for a, b in zip(drawn, other)) / 2000 < 0.7   # 0.625 by chance
