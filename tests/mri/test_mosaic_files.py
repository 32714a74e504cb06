"""Mosaics as PNG files: our writer, and others' readers."""
import warnings

import numpy as np
import pytest
import torchvision
from PIL import Image

from mri import mosaic, mosaic_files
from utils.errors import UserError


def test_a_mosaics_png_is_read_alike_by_other_decoders(tmp_path):
    for seed, (height, width) in enumerate([(48, 48), (1, 1), (7, 3), (896, 896)]):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8) // (1 if seed < 3 else 64)
        mosaic_files.write_mosaic(tmp_path / "m.png", pixels)
        with Image.open(tmp_path / "m.png") as image:
            image.verify()                                              # every chunk's checksum
        assert np.array_equal(np.asarray(Image.open(tmp_path / "m.png")), pixels)
        theirs = torchvision.io.read_image(str(tmp_path / "m.png"))     # by libpng
        assert np.array_equal(theirs.permute(1, 2, 0).numpy(), pixels)


def test_a_large_mosaic_is_read_without_a_warning(tmp_path, monkeypatch):
    """PIL warns above a limit that 512 cubed in layout "gray" exceeds."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)   # stands in for 89 million
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    mosaic_files.write_mosaic(tmp_path / "m.png", pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = mosaic_files.read_mosaic(tmp_path / "m.png", {"size": 6, "layout": "rgb"})
    assert np.array_equal(read, pixels)
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(tmp_path / "m.png")


def test_errors_name_the_file(tmp_path):
    header = {"size": 6, "layout": "rgb"}
    with pytest.raises(UserError, match="m.png: no such file; preprocess again"):
        mosaic_files.read_mosaic(tmp_path / "m.png", header)
    mosaic_files.write_mosaic(tmp_path / "m.png", np.zeros((12, 13, 3), np.uint8))
    with pytest.raises(UserError, match="13 x 12 RGB, but the manifest says 12 x 12 RGB"):
        mosaic_files.read_mosaic(tmp_path / "m.png", header)
    (tmp_path / "m.png").write_bytes((tmp_path / "m.png").read_bytes()[:60])
    with pytest.raises(UserError, match="13 x 12|cannot be read as PNG"):
        mosaic_files.read_mosaic(tmp_path / "m.png", header)


def test_a_reader_keeps_the_last_mosaics_in_memory(tmp_path, monkeypatch):
    header = {"size": 8, "layout": "rgb"}
    side = mosaic.mosaic_side(8, "rgb")
    (tmp_path / "mosaics").mkdir()
    expected = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    for name, pixels in zip("abc", expected):
        mosaic_files.write_mosaic(mosaic_files.mosaic_path(tmp_path, name), pixels)
    monkeypatch.setattr(mosaic_files, "KEPT_BYTES", 2 * 3 * side ** 2)
    read = []
    whole = mosaic_files.read_mosaic
    monkeypatch.setattr(mosaic_files, "read_mosaic",
                        lambda path, header: read.append(path.stem) or whole(path, header))
    reader = mosaic_files.MosaicReader([(tmp_path, header, {"id": name}) for name in "abc"])
    assert len(reader) == 3 and reader.side == side
    for i in (0, 1, 0, 1, 2, 1, 0):
        assert np.array_equal(reader[i], expected[i])
    assert read == ["a", "b", "c", "a"]
