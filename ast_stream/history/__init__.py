"""The history: events, gaps, alerts, clips, verdicts and scores, kept on disk."""
