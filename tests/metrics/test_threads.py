import pytest
import torch

from metrics.threads import threads_of_one_core


def test_each_thread_has_one_core_and_the_cores_come_back():
    cores = torch.get_num_threads()
    with threads_of_one_core() as executor:
        assert executor._max_workers == cores
        assert list(executor.map(lambda _: torch.get_num_threads(), range(4))) == [1] * 4
    with threads_of_one_core("cuda") as executor:
        assert executor._max_workers == 1
    with pytest.raises(RuntimeError), threads_of_one_core():
        raise RuntimeError
    assert torch.get_num_threads() == cores
