"""Thresholds and rise times of a checkpoint, measured on streams of known truth."""
