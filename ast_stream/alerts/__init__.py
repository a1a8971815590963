"""The alerts process: rules over the feed, and alerts delivered through a durable outbox."""
