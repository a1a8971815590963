"""Sound in: sources, down-mixing, resampling and the ring."""
