"""Attention calibration: the maths, the kernels, and how a model's attention is reached."""
