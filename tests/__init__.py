"""The proofs: each statement of the README on a real broker."""
