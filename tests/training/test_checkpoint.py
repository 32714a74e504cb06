import argparse
import os

import pytest
import torch
from helpers import ROOT, random_vae, randomize, script, small_dit
from safetensors.torch import load_file, save_file

import models
from training import base_weights, checkpoint, finetuning, pretrained
from utils.errors import UserError

CONFIG = dict(
    hidden_size=32,
    depth=2,
    num_heads=2,
    patch_size=2,
    in_channels=4,
    num_classes=3,
    gamma_blocks=0,
    numerics="official",
)


def official(path, grid=4, wrap=lambda state: state, **config):
    """Writes random weights in the official format, as torch.save did. Returns the model."""
    torch.manual_seed(0)
    model = small_dit(input_size=grid * 2, base_grid=grid, **{**CONFIG, **config}).eval()
    randomize(model)
    torch.save(wrap({k: v.clone() for k, v in model.state_dict().items()}), path)
    return model


def assembled(path, grid, **config):
    weights = pretrained.load_weights(path)
    config = {**CONFIG, "input_size": grid * 2, "base_grid": weights.base_grid, **config}
    return base_weights.assemble(
        {**config, "numerics": weights.numerics}, base_weights.fit_base(weights, config), path
    )


def inputs(grid):
    torch.manual_seed(1)
    return (
        torch.randn(3, 4, grid * 2, grid * 2),
        torch.tensor([0, 400, 999]),
        torch.tensor([0, 2, 3]),
    )


def test_official_weights_at_their_grid_and_at_a_larger_one(tmp_path):
    theirs = official(tmp_path / "DiT.pt")
    ours = assembled(tmp_path / "DiT.pt", 4)
    assert torch.equal(ours(*inputs(4)), theirs(*inputs(4)))
    larger = assembled(tmp_path / "DiT.pt", 7)
    assert torch.allclose(larger.pos_embed[0], models.pos_embed(32, 7, 4)) and larger(
        *inputs(7)
    ).shape == (3, 8, 14, 14)
    for name, p in theirs.named_parameters():
        if name != "pos_embed":
            assert torch.equal(dict(larger.named_parameters())[name], p)


@pytest.mark.parametrize("legacy", [False, True])
def test_training_checkpoints_of_the_original_code(tmp_path, legacy):
    """Its keys are model, ema, opt and args, an argparse.Namespace; it samples with the EMA."""
    path = tmp_path / "0400000.pt"

    def wrap(state):
        return {
            "model": {k: v + 1 for k, v in state.items()},
            "ema": state,
            "opt": torch.optim.AdamW([torch.zeros(2)]).state_dict(),
            "args": argparse.Namespace(model="DiT-XL/2", image_size=512, results_dir="results"),
        }

    theirs = official(path, wrap=wrap)
    if legacy:
        content = torch.load(path, weights_only=False)
        torch.save(content, path, _use_new_zipfile_serialization=False)
    assert torch.equal(assembled(path, 4)(*inputs(4)), theirs(*inputs(4)))


def test_plain_safetensors(tmp_path):
    theirs = official(tmp_path / "a.pt")
    save_file(
        {k: v.contiguous() for k, v in theirs.state_dict().items()}, tmp_path / "a.safetensors"
    )
    assert torch.equal(assembled(tmp_path / "a.safetensors", 4)(*inputs(4)), theirs(*inputs(4)))


def diffusers_folder(path, tied=True):
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=3,
    ).eval()
    randomize(model)
    for block in model.transformer_blocks[1:] if tied else []:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("nested", [False, True])
def test_diffusers_folders(tmp_path, nested):
    theirs = diffusers_folder(tmp_path / "transformer" if nested else tmp_path)
    ours = assembled(tmp_path, 4)
    x, t, y = inputs(4)
    with torch.no_grad():
        a, b = ours(x, t, y), theirs(x, timestep=t, class_labels=y).sample
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert assembled(tmp_path, 7).pos_embed.shape == (1, 49, 32)


def test_diffusers_folder_with_bin_weights_and_one_that_is_no_dit(tmp_path):
    theirs = diffusers_folder(tmp_path)
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no diffusion_pytorch_model.safetensors"):
        pretrained.load_weights(tmp_path)
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    x, t, y = inputs(4)
    with torch.no_grad():
        assert torch.allclose(
            assembled(tmp_path, 4)(x, t, y), theirs(x, timestep=t, class_labels=y).sample, atol=1e-5
        )
    diffusers_folder(tmp_path / "untied", tied=False)
    with pytest.raises(UserError, match="embedders of their own"):
        pretrained.load_weights(tmp_path / "untied")
    random_vae(tmp_path / "vae")
    with pytest.raises(UserError, match="no DiTTransformer2DModel"):
        pretrained.load_weights(tmp_path / "vae")


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/mosaicdit-was-here",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_malicious_pickle_never_runs(tmp_path, legacy):
    marker = "/tmp/mosaicdit-was-here"
    torch.save(
        {"pos_embed": Evil()},
        tmp_path / "DiT-XL-2-512x512.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(
        UserError, match=r"refused, its pickle holds \w+\.system, which could run code"
    ):
        pretrained.load_weights(tmp_path / "DiT-XL-2-512x512.pt")
    assert not os.path.exists(marker)


def test_files_that_are_no_weights(tmp_path):
    def refused(path, words, **config):
        with pytest.raises(UserError, match=words) as e:
            assembled(path, 4, **config)
        assert str(path) in str(e.value) and "\n" not in str(e.value)

    refused(tmp_path / "DiT-XL-2-512x512.pt", "download.py dit-xl-2-512")
    path = tmp_path / "a.pt"
    official(path)
    whole = path.read_bytes()
    for content in (b"", whole[:1000], whole[:-3000], b"PK\3\4 not a zip"):
        path.write_bytes(content)
        refused(path, "cannot be read as PyTorch weights|refused")
    torch.save({"state": 3}, path)
    refused(path, "not the weights of a DiT")
    official(path)
    refused(path, "weights of another model: it lacks blocks.2.*--model", depth=3)
    refused(path, "weights of another model: it also has blocks.1", depth=1)
    refused(
        path, r"x_embedder.proj.weight is \(32, 4, 2, 2\), \(32, 8, 2, 2\) is needed", in_channels=8
    )
    (tmp_path / "b.safetensors").write_bytes(b"123")
    refused(tmp_path / "b.safetensors", "not a complete safetensors file")


def test_class_table_is_resized_from_the_null_class(tmp_path):
    theirs = official(tmp_path / "a.pt")
    table = theirs.y_embedder.embedding_table.weight
    ours = assembled(tmp_path / "a.pt", 4, num_classes=1).y_embedder.embedding_table.weight
    assert ours.shape == (2, 32) and torch.equal(ours, table[[3, 3]])
    assert torch.equal(assembled(tmp_path / "a.pt", 4).y_embedder.embedding_table.weight, table)


def test_checkpoint_rebuilds_the_model_and_holds_only_what_trained(tmp_path):
    official(tmp_path / "a.pt")
    model = assembled(tmp_path / "a.pt", 7, gamma_blocks=1)
    trained = finetuning.set_trainable(model, "difffit")
    raw = {k: p.detach().clone() for k, p in trained.items()}
    ema = {k: p.detach() + 1 for k, p in trained.items()}
    config = {**CONFIG, "input_size": 14, "base_grid": 4, "gamma_blocks": 1}
    base = dict(
        path=str(tmp_path / "a.pt"),
        name="a.pt",
        sha256=pretrained.sha256_of_weights(tmp_path / "a.pt"),
    )
    path = tmp_path / "0000007.safetensors"
    checkpoint.save_checkpoint(path, dict(config=config, base=base, step=7), ema=ema, raw=raw)
    assert set(load_file(path)) == {f"{g}.{k}" for g in ("ema", "raw") for k in trained}
    again, meta = pretrained.restore_model(path, "raw")
    assert meta["step"] == 7 and torch.equal(again(*inputs(7)), model(*inputs(7)))
    averaged, _ = pretrained.restore_model(path)
    assert torch.equal(averaged.blocks[0].gamma1, torch.full((32,), 2.0)) and torch.equal(
        averaged.pos_embed, model.pos_embed
    )
    chained = pretrained.load_weights(path)  # our checkpoint as the base of another run
    assert chained.base_grid == 4 and torch.equal(
        chained.tensors["blocks.1.mlp.fc1.bias"], averaged.blocks[1].mlp.fc1.bias
    )

    moved = tmp_path / "elsewhere.pt"
    (tmp_path / "a.pt").rename(moved)
    with pytest.raises(UserError, match="needs its base weights a.pt, not found .* --base FILE"):
        pretrained.restore_model(path)
    assert torch.equal(
        pretrained.restore_model(path, "raw", moved)[0](*inputs(7)), model(*inputs(7))
    )
    official(moved, wrap=lambda s: {k: v + 1 for k, v in s.items()})
    with pytest.raises(UserError, match="not the base weights of .* SHA-256 differs"):
        pretrained.restore_model(path, "raw", moved)


def test_damaged_checkpoints(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save_checkpoint(path, dict(step=1), raw={"w": torch.zeros(100)})
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-1]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="not a complete safetensors file"):
            checkpoint.read_metadata(path)
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a MosaicDiT checkpoint"):
        checkpoint.read_metadata(path)
    with pytest.raises(UserError, match="no such file"):
        checkpoint.read_metadata(tmp_path / "none")


def test_a_checkpoint_of_the_papers_run_is_under_20_mb(tmp_path):
    with torch.device("meta"):
        model = models.DiT_models["DiT-XL/2"](input_size=112, base_grid=32)
    trained = {
        k: torch.zeros(p.shape) for k, p in finetuning.set_trainable(model, "difffit").items()
    }
    checkpoint.save_checkpoint(
        tmp_path / "a.safetensors",
        dict(step=66000),
        ema=trained,
        raw={k: v.clone() for k, v in trained.items()},
    )
    size = (tmp_path / "a.safetensors").stat().st_size
    assert 8 * 1_642_784 < size < 14e6


def test_full_disk_leaves_no_checkpoint(tmp_path):
    import resource

    code = (
        "import torch; from training import checkpoint; from utils.errors import run_script\n"
        f"path = {str(tmp_path / 'a.safetensors')!r}\n"
        "weights = {'w': torch.zeros(100000)}\n"
        "run_script(lambda: checkpoint.save_checkpoint(path, {}, raw=weights))"
    )
    (tmp_path / "save.py").write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + code)
    done = script(
        tmp_path / "save.py",
        expect=2,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert "error: " in done.stderr and sorted(p.name for p in tmp_path.iterdir()) == ["save.py"]


@pytest.mark.parametrize("part", [{"average": {"initial_share": "much"}}, {"average": []},
                                  {"loss_scaling": {"scale": None}}, {"class_counts": 3}])
def test_what_0_5_0_added_is_checked(tmp_path, part):
    path = tmp_path / "a.safetensors"
    checkpoint.save_checkpoint(path, dict(step=1, **part), raw={"w": torch.zeros(1)})
    with pytest.raises(UserError, match=f"metadata is damaged .{next(iter(part))}"):
        checkpoint.read_metadata(path)
