"""Sockets, the feed and its log: how messages get from one process to another."""
