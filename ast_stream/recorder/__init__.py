"""The recorder process: clips of events, and the history of the feeds."""
