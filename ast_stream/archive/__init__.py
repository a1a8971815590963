"""Archives of any size: scanned in resumable shards to Parquet, and read back."""

from ast_stream.archive.reader import archive_state, read_coverage, read_events

__all__ = ["archive_state", "read_coverage", "read_events"]
