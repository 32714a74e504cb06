"""Scan to volume to mosaic and back, and the data folder."""
