"""What the processes tell each other: one typed class for each body, with its codec."""
