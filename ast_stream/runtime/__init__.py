"""The life of a process: start-up, readiness, signals, supervision."""
