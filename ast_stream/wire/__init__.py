"""Bytes and sockets between the processes."""
