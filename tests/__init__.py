"""The proofs: each statement of the pages on a real broker."""
