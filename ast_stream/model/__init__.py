"""The Audio Spectrogram Transformer: features, architecture, checkpoints and how to run it."""
