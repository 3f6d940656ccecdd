"""Samples as 8-bit levels, image files, PNG bytes and figures.

`quantization` is the only module that turns floats into 8-bit levels. Everything behind it (PNG
files, figures, the explorer) takes levels, so each sample is quantized once.
"""
