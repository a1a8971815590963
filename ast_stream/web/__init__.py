"""The page: live view, timeline and review of events in a browser."""
