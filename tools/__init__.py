"""What `make` runs that is neither a test nor a measurement."""
