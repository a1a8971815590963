"""The coverage ledger: what became of every sample of every stream, on disk, and its totals."""
