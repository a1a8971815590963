"""The version of the package, where every part may import it."""

__version__ = "0.1.0"
