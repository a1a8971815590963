"""Verdicts on events: reviewed clips as training data, and verifiers fitted to them."""
