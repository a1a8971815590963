"""Settings: what an operator may choose, and how it is read from YAML."""
