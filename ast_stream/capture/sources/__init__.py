"""Sources of sound: one module for each type."""
