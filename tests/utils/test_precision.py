"""The compute dtype that a device gets, without such a device."""
import pytest
import torch

from utils import flags, precision
from utils.errors import UserError


@pytest.mark.parametrize("capability, expected", [((7, 0), "fp16"), ((7, 5), "fp16"),
                                                  ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_the_default_follows_the_card(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.resolve_precision(None, "cuda:0") == expected
    assert precision.resolve_precision("bf16", "cuda") == "bf16"
    assert precision.resolve_precision("fp16", "cuda") == "fp16"


def test_cpus_and_apple_gpus_keep_bf16():
    for device in ("cpu", "mps"):
        assert precision.resolve_precision(None, device) == "bf16"
        with pytest.raises(UserError, match="--precision fp16: needs a CUDA GPU"):
            precision.resolve_precision("fp16", device)


def test_autocast_has_three_dtypes():
    a = torch.ones(2, 2)
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        with precision.autocast("cpu", name):
            assert (a @ a).dtype == dtype


def test_a_flag_without_a_default_offers_fp16(capsys):
    parser = flags.make_parser("what it does")
    flags.add_precision_flag(parser, default=None)
    flags.add_precision_flag(parser, flag="--vae-precision", default="fp32")
    args = parser.parse_args([])
    assert (args.precision, args.vae_precision) == (None, "fp32")
    assert parser.parse_args(["--precision", "fp16"]).precision == "fp16"
    with pytest.raises(SystemExit):
        parser.parse_args(["--vae-precision", "fp16"])


@pytest.mark.parametrize("device, words", [
    ("xpu", "'xpu': not supported; give one of cpu, cuda, mps"), ("meta", "not supported"),
    ("mps", "PyTorch sees no Apple GPU on this machine; give cpu")])
def test_devices_that_are_refused(capsys, monkeypatch, device, words):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    parser = flags.make_parser("what it does")
    flags.add_device_flag(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--device", device])
    error = capsys.readouterr().err
    assert words in " ".join(error.split()) and "Traceback" not in error


def test_an_apple_gpu_is_accepted_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    parser = flags.make_parser("what it does")
    flags.add_device_flag(parser)
    assert parser.parse_args(["--device", "mps"]).device == "mps"


def test_processors_with_bf16_are_known_by_their_flags(tmp_path):
    info = tmp_path / "cpuinfo"
    for words, expected in (("fpu avx512f avx512_bf16 clzero", True), ("amx_bf16 amx_tile", True),
                            ("fpu avx512f avx512_vnni", False)):
        info.write_text(f"processor\t: 0\nflags\t\t: {words}\n")
        assert precision.cpu_computes_bf16(info) == expected
    assert not precision.cpu_computes_bf16(tmp_path / "nothing")
