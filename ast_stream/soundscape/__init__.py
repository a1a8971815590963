"""Synthetic soundscapes with known truth: for the demo, training, calibration and evaluation."""
