"""The ledger of what was listened to: spans of every stream, on disk, and what they add up to."""
