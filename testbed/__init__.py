"""What tests and tools both stand on: the broker of a run, a cluster, terminals."""
