"""The kinds of sources of sound, one file for each."""
