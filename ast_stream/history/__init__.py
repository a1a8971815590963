"""What was heard, kept to be looked at: events, gaps, alerts, clips, verdicts and scores."""
