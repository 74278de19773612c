"""Checkpoints of other formats, read, written and compared."""
