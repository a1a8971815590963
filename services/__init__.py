"""Processes and commands: compose the library and run; the only place that exits."""
