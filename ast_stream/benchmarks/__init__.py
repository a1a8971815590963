"""Benchmarks of the stages and of whole boxes, and the soak test."""
