"""Who gets audio: the one place that hands it out, what it withholds, and the record of it."""
