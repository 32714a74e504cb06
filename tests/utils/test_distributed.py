"""Which process this is, and what a forgotten line in the shell does not change."""
import pytest
import torch

from utils import distributed


@pytest.fixture(autouse=True)
def shell(monkeypatch):
    """An environment without anything of a launcher."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", *distributed.LAUNCHER_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    distributed._warn_once.cache_clear()
    return monkeypatch


def test_a_single_process(capsys):
    assert (distributed.rank(), distributed.world_size()) == (0, 1) and distributed.is_main()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", distributed.LAUNCHER_VARIABLES)
def test_a_process_of_torchrun(shell, capsys, name):
    shell.setenv("RANK", "1")
    shell.setenv("WORLD_SIZE", "2")
    shell.setenv(name, "x")
    assert (distributed.rank(), distributed.world_size()) == (1, 2)
    assert not distributed.is_main() and capsys.readouterr().err == ""


def test_a_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert distributed.own_device("cuda:1") == "cuda:1"
    assert distributed.own_device("cuda") == "cuda"
    assert distributed.own_device("cpu") == "cpu"
    assert current == ["cuda:1"]


def test_leftover_variables_are_named_once_and_ignored(shell, capsys):
    shell.setenv("RANK", "0")
    shell.setenv("WORLD_SIZE", "2")
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert warning.startswith("warning: RANK=0 WORLD_SIZE=2 in the environment")
    assert "this is a single process" in warning
