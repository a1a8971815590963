"""Audio in memory and in files: mixing and resampling, decoders, recordings, Opus."""
