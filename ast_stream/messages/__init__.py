"""Messages between processes: one typed class for each body, with its codec."""
