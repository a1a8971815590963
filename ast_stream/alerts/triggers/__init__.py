"""Triggers: when a rule fires."""
