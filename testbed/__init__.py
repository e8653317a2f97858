"""What the tests, the tools and the benchmark all stand on: a broker, a cluster, a terminal."""
