"""How good a checkpoint is, on clips and in streams."""
