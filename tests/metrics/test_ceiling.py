from types import SimpleNamespace

import numpy as np

from metrics import ceiling
from mri import mosaic


def test_layouts_that_the_vae_cannot_divide_are_left_out():
    vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(8, 8, 8, 8, 8)))  # factor 16
    side = 20
    rgb, gray = (mosaic.mosaic_side(side, layout) for layout in ("rgb", "gray"))
    assert rgb % 16 and gray % 16
    usable, skipped = ceiling.usable_layouts(vae, ["rgb", "gray"], side)
    assert usable == [] and list(skipped) == ["VAE, rgb", "VAE, gray"]
    assert skipped["VAE, rgb"] == (
        f"a mosaic of {rgb} pixels cannot be divided by the VAE's downsampling factor 16")
    usable, skipped = ceiling.usable_layouts(vae, ["gray", "rgb"], 16)
    assert usable == ["gray", "rgb"] and skipped == {}


def test_volumes_are_tiled_passed_on_and_untiled(monkeypatch):
    volumes = np.random.default_rng(0).integers(0, 200, (3, 6, 6, 6)).astype(np.uint8)
    out = np.empty_like(volumes)
    monkeypatch.setattr("diffusion.vae.reconstruct", lambda vae, mosaics: mosaics)
    assert ceiling.through_vae(volumes, out, "rgb", vae=None) == ceiling.MAX_PSNR == 120
    assert np.array_equal(out, volumes)
    monkeypatch.setattr("diffusion.vae.reconstruct", lambda vae, mosaics: mosaics + 51)
    for layout in ("rgb", "gray"):
        assert np.isclose(ceiling.through_vae(volumes, out, layout, None), 20 * np.log10(5))
        assert np.array_equal(out, volumes + 51)
