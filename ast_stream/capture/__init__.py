"""The capture process: from a source of sound into the ring and to the worker."""
