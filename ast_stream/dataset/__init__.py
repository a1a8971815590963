"""Recordings, generated sounds and streams of known truth, to learn from and to measure on."""
