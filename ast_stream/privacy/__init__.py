"""Access to audio: the only place that returns it, what is withheld, and the audit log."""
