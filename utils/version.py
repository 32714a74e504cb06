"""The version of MosaicDiT, in one place: `--version`, metrics.json and checkpoints show it."""

__version__ = "0.11.0"
