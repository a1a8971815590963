"""A pool of workers: its members, the placement of streams, and who had a stream before."""
