"""Access to audio: the one place that hands it out, what is withheld, and the record of it."""
