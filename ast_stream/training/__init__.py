"""Make checkpoints: draw windows, train, resume, export."""
