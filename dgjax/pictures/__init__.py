"""Samples as pixels, levels, files and grids of pictures."""
