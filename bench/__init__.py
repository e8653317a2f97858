"""What each choice costs: the programs that measure, and their results."""
