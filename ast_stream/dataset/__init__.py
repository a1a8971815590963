"""Labelled recordings, for training and measurement."""
