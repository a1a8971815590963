"""Tests of alert rules: known sounds in, expected alerts out."""
