"""When a step is captured, and how a capture is replayed. tests/test_gpu.py does it on a GPU."""
from types import SimpleNamespace

import pytest
import torch
from helpers import script, small_dit

import train
from training import cuda_graphs, finetuning
from training.step import Batches, compute_gradients
from utils import distributed
from utils.errors import UserError

OPTIONS = dict(global_batch_size=4, precision="fp32", device="cpu")


@pytest.fixture
def captures(monkeypatch):
    """The shapes that were captured; a replay here computes as usual."""
    found = []

    class Recorded:
        def __init__(self, model, batch, parameters, options):
            found.append(tuple(batch[0].shape))
            self.arguments = model, options

        def replay(self, batch, parameters):
            model, options = self.arguments
            return compute_gradients(model, batch, parameters, **options)

    monkeypatch.setattr(cuda_graphs, "_Captured", Recorded)
    return found


def test_every_set_of_shapes_warms_up_and_is_captured_once(captures):
    torch.manual_seed(0)
    model = small_dit().initialize_weights()
    parameters = list(finetuning.set_trainable(model, "difffit").values())
    batches = Batches(torch.randn(3, 8, 8, 8), torch.zeros(3, dtype=torch.long),
                      dict(scaling_factor=1), 10, seed=0, global_batch_size=4, label_dropout=0,
                      last_step=12, device="cpu")
    graphed = cuda_graphs.GraphedGradients()
    seen = []
    for step in range(1, 13):
        batch = batches.take(step)
        if step > 7:        # as when the last steps compute all tokens
            batch = tuple(values[:2] for values in batch)
        losses, is_bad = graphed(model, batch, parameters, **OPTIONS)
        again, _ = compute_gradients(model, batch, parameters, **OPTIONS)
        assert torch.equal(losses, again) and is_bad == 0
        seen.append(len(captures))
    assert cuda_graphs.WARM_UP == 3
    assert seen == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2]
    assert captures == [(4, 4, 8, 8), (2, 4, 8, 8)]


def test_processes_of_torchrun_have_none(monkeypatch):
    args = SimpleNamespace(token_margin=0, base=None, val_split="test", cuda_graphs=True,
                           device="cuda")
    train.check_flags_without_effect(args)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--cuda-graphs: for a single process"):
        train.check_flags_without_effect(args)


def test_a_cpu_has_no_graphs(data, vae_folder, tmp_path):
    for name, *flags in (
            ("train.py", "--data-path", data, "--vae", vae_folder, "--ckpt", "none", "--tune",
             "full", "--results-dir", tmp_path / "r"),
            ("bench.py", "train")):
        done = script(name, *flags, "--cuda-graphs", "--device", "cpu", expect=2)
        assert "--cuda-graphs: only on a" in done.stderr
    assert not (tmp_path / "r").exists()
