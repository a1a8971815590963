"""The worker process: audio of all streams in, events out on the feed."""
