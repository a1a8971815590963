"""The recorder process: clips of events, and the history of all that the feeds say."""
